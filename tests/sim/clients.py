"""Clients: they submit to some nodes, ask again while nothing is final, and now and then contradict themselves."""

from random import Random

from consensus.ledger.ids import tagged_hash
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import Call, Transaction, make_call
from tests.node.support import GENESIS_TIME_MS, Consortium

VALIDITY_MS = 30 * 60_000
UNIT = "eur"
BANK = "bank-a"
HOLDERS = ("bank-a", "shop", "user-b", "user-e")


class Clients:
    """Makes the transactions of one schedule."""

    def __init__(self, consortium: Consortium, seed: int, valid_until_ms: int) -> None:
        self._consortium = consortium
        self._random = Random(f"{seed}/clients")
        self._valid_until_ms = valid_until_ms
        self._numbers: dict[tuple[str, bytes], int] = {}
        self._probes = 0

    def opening(self) -> list[Transaction]:
        """Return what gives everyone some money."""
        calls = [make_call("tokens", "define", {"unit": UNIT, "decimals": 2})]
        calls += [
            make_call("tokens", "issue", {"unit": UNIT, "to": self._address(name), "amount": 1_000}) for name in HOLDERS
        ]
        return [self._sign(BANK, [call], b"") for call in calls]

    def transfer(self, *, conflicting: bool) -> list[Transaction]:
        """Return a transfer in some lane; a conflicting one comes with a rival for the same number."""
        random = self._random
        sender = random.choice(HOLDERS)
        lane = random.choice((b"", b"a", tagged_hash("lane", random.randbytes(8))))
        made = [self._sign(sender, [self._transfer(sender)], lane)]
        if conflicting:
            made.append(self._sign(sender, [self._transfer(sender)], lane, again=True))
        return made

    def probe(self, valid_until_ms: int) -> Transaction:
        """Return a transaction that nothing but the network can keep from becoming final."""
        self._probes += 1
        lane = tagged_hash("probe", bytes([self._probes]))
        call = make_call("tokens", "transfer", {"unit": UNIT, "to": self._address("shop"), "amount": 1})
        return self._consortium.sign(BANK, [call], sequence=0, lane=lane, valid_until_ms=valid_until_ms)

    def _transfer(self, sender: str) -> Call:
        to = self._random.choice([name for name in HOLDERS if name != sender])
        amount = self._random.randint(1, 400)
        return make_call("tokens", "transfer", {"unit": UNIT, "to": self._address(to), "amount": amount})

    def _sign(self, sender: str, calls: list[Call], lane: bytes, *, again: bool = False) -> Transaction:
        number = self._numbers.get((sender, lane), 0) - again
        self._numbers[sender, lane] = number + 1
        return self._consortium.sign(sender, calls, sequence=number, lane=lane, valid_until_ms=self._valid_until_ms)

    def _address(self, name: str) -> bytes:
        key: PrivateKey = self._consortium.account_keys[name]
        return key.public.address


def latest_validity_ms(started_ms: int) -> int:
    """Return how long the transactions of a schedule that starts then are valid."""
    return max(started_ms, GENESIS_TIME_MS) + VALIDITY_MS
