"""Two gateways over real sockets: packages out, answers back, anchors on the chain."""

from pathlib import Path

import trio

from services.agency.interfaces import PackageState, RootQuery
from tests.agency.world import (
    BANK,
    INTERFACE,
    ISSUER,
    OTHER_INTERFACE,
    answer_next,
    application,
    outcomes,
    submit,
    world,
)


async def test_a_batch_travels_as_one_package_an_interface_and_comes_back_anchored(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        with trio.fail_after(20):
            orders = [application(number) for number in range(20)]
            submitted = await submit(
                bank, *orders, application(50, interface=OTHER_INTERFACE), application(51, interface="X")
            )
            assert [(item.serial, item.code) for item in submitted.refused] == [
                ("A00000050", "no_channel"),
                ("A00000051", "unknown_interface"),
            ]
            (package,) = submitted.packages
            assert package.serials == [item.serial for item in orders]
            _, answer = await answer_next(issuer)
            answered, anchored = await outcomes(bank, 2)
            assert (answered.kind, answered.root, answered.confirmations) == (
                "answered",
                package.root,
                answer.confirmations,
            )
            assert (anchored.kind, anchored.root) == ("anchored", package.root)
            state = await bank.call("package", RootQuery(package.root), PackageState)
            assert state.state == "answered"
            assert [(item.status, item.transaction_id) for item in state.rounds] == [
                ("MUTUAL", anchored.transaction_id)
            ]
            record = await found.client.query(
                "evidence", "anchor_of", {"bank": BANK, "issuer": ISSUER, "root": package.root, "round_number": 0}
            )
            assert isinstance(record, dict)
            assert record["anchors"][0]["outcomeRoot"] == answer.outcome_root  # type: ignore[index,call-overload]
            assert len(found.wire.posted) == 2
            assert orders[0].interface == INTERFACE
