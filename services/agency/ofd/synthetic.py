"""Seeded files of applications with the form of the real one, for demos, benchmarks and tests without data.

The same seed gives the same bytes on every machine. As in the real file some transaction accounts belong to two TA
accounts, one record names a foreign distributor, amounts spread over many sizes, and there are texts in Chinese.
"""

from collections.abc import Iterable, Sequence
from random import Random
from typing import Final

from consensus.ledger.errors import LocalError
from services.agency.ofd.files import FundFile, make_record, new_header
from services.agency.ofd.layout import LAYOUTS, FileType
from services.agency.ofd.writer import new_file
from services.agency.orders import Application, Code, Investor

ORDERS_DEFAULT: Final = 1006
ACCOUNTS_DEFAULT: Final = 862
ORDERS_MAX: Final = 99_999_999
_SHARED_OF_THOUSAND = 42
_PLANS = ("定投计划", "稳健计划", "养老计划", "教育计划")


def orders_file(
    seed: int,
    *,
    orders: int = ORDERS_DEFAULT,
    accounts: int = ACCOUNTS_DEFAULT,
    products: Sequence[str] = ("000198",),
    code: Code = Code.SUBSCRIPTION,
    creator: str = "996",
    receiver: str = "H0",
    date: str = "20170427",
    foreign: int = 1,
) -> FundFile:
    """Return a file of type 03 with ``orders`` applications of ``accounts`` holders; each holder has at least one.

    ``foreign`` of its records name the distributor ``196`` instead of the creator. Redemptions and transfers apply for
    units, all else for money.

    Raises:
        LocalError: ``bad_arguments`` where there are more holders or foreign records than orders.
    """
    if not 1 <= accounts <= orders <= ORDERS_MAX or not 0 <= foreign <= orders or not products:
        raise LocalError("bad_arguments", f"{orders} orders of {accounts} accounts, {foreign} foreign ones")
    random = Random(f"orders/{seed}")
    holders = _holders(random, accounts)
    layout = LAYOUTS[FileType.TRADE_APPLICATIONS]
    strangers = set(random.sample(range(orders), foreign))
    quantity = "ApplicationVol" if code in _BY_VOLUME else "ApplicationAmount"
    records = []
    for number in range(orders):
        ta_account, transaction_account, deposit = holders[number if number < accounts else random.randrange(accounts)]
        values: dict[str, str | int | None] = {
            "AppSheetSerialNo": f"{creator[:3]:0>3}{date}{seed % 10_000:04d}{number:09d}",
            "FundCode": random.choice(products),
            "TransactionDate": date,
            "TransactionTime": f"{random.randrange(9, 15):02d}{random.randrange(60):02d}{random.randrange(60):02d}",
            "TransactionAccountID": transaction_account,
            "DistributorCode": "196" if number in strangers else creator,
            quantity: random.randrange(1, 10 ** random.randrange(2, 8)),
            "BusinessCode": code.value,
            "TAAccountID": ta_account,
            "DepositAcct": deposit,
            "CurrencyType": "156",
            "IndividualOrInstitution": "1",
            "Specification": f"{random.choice(_PLANS)}|{number % 97:03d}",
            "DetailFlag": "0",
            "FrozenCause": "0",
        }
        records.append(make_record(layout, values))
    header = new_header(FileType.TRADE_APPLICATIONS, creator=creator, receiver=receiver, date=date)
    return new_file(header, records, f"seed {seed}")


def investor_of(seed: int, ta_account: str, *, on: int = 20170427) -> Investor:
    """Return the profile of a holder: of age on the day ``on`` (YYYYMMDD), investor class C1 to C5.

    It depends on the seed and the account alone, so files that share accounts share profiles.
    """
    random = Random(f"investor/{seed}/{ta_account}")
    year = on // 10_000 - random.randrange(19, 80)
    birth_date = year * 10_000 + random.randrange(1, 13) * 100 + random.randrange(1, 29)
    return Investor(
        name=f"user-{ta_account}",
        certificate_type="0",
        certificate_number=f"{random.randrange(10**5, 10**6)}{birth_date}{random.randrange(10**4):04d}",
        birth_date=birth_date,
        risk_class=random.randrange(1, 6),
    )


def registrations(
    applications: Iterable[Application], seed: int, *, interface: str, distributor: str
) -> list[Application]:
    """Return an account application (001) for each holder of these applications, in order of first appearance.

    ``interface`` is the issuer's interface id that they go to, ``distributor`` the bank's own code.
    """
    first: dict[str, Application] = {}
    for application in applications:
        first.setdefault(application.ta_account, application)
    return [
        Application(
            serial=f"R{application.date:08d}{ta_account}"[:24],
            code=Code.OPEN_ACCOUNT.value,
            interface=interface,
            product="",
            target_product="",
            ta_account=ta_account,
            transaction_account=application.transaction_account,
            distributor=distributor,
            target_distributor="",
            amount=0,
            volume=0,
            currency="",
            date=application.date,
            time=application.time,
            terms_version=0,
            is_warned=False,
            investor=investor_of(seed, ta_account, on=application.date),
            fields={},
        )
        for ta_account, application in first.items()
    ]


_BY_VOLUME = frozenset(
    {
        Code.REDEMPTION,
        Code.CONVERSION,
        Code.CUSTODY_TRANSFER,
        Code.CUSTODY_TRANSFER_IN,
        Code.CUSTODY_TRANSFER_OUT,
    }
)


def _holders(random: Random, count: int) -> list[tuple[str, str, str]]:
    """Return TA account, transaction account and deposit account of each holder."""
    ta_accounts = [str(number) for number in random.sample(range(10**11, 10**12), count)]
    shared = count * _SHARED_OF_THOUSAND // 1000
    own = [str(number) for number in random.sample(range(10**16, 10**17), count - shared)]
    transaction_accounts = [*own, *own[:shared]]
    return [
        (ta_account, transaction_account, f"9{transaction_account[:15]}")
        for ta_account, transaction_account in zip(ta_accounts, transaction_accounts, strict=True)
    ]
