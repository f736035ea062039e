"""Orders and confirmations as ISO 20022 messages: element by element, references, escaping, refusals."""

import xml.etree.ElementTree as ET

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.errors import LocalError
from services.agency.iso20022 import (
    NAMESPACE,
    REDEMPTION_CONFIRMATION,
    REDEMPTION_ORDER,
    SUBSCRIPTION_CONFIRMATION,
    SUBSCRIPTION_ORDER,
    confirmation_message,
    messages_of,
    order_message,
)
from services.agency.ofd.mapping import applications_of
from services.agency.ofd.synthetic import orders_file
from services.agency.orders import Application, Confirmation

CREATED_MS = 1_493_251_200_123
replace = msgspec.structs.replace

ORDER = replace(
    applications_of(orders_file(1, orders=1, accounts=1, foreign=0), {"000198": "C-FUNDS"})[0],
    serial="S1",
    ta_account="100011554002",
    transaction_account="21976257381660451",
    amount=100_005,
    time=90_102,
)
REDEMPTION = replace(ORDER, code="024", amount=0, volume=5_000)
DEAL = Confirmation("S1", "122", "TA7", "100011554002", "0000", "", 100_005, 79_803, 12_345, 1_500, 20170428, True)
REDEEMED = replace(DEAL, code="124", amount=6_000, volume=5_000, charge=172)


def order_tree(application: Application) -> ET.Element:
    return ET.fromstring(order_message(application, message_id="M1", created_ms=CREATED_MS))


def deal_tree(application: Application, confirmation: Confirmation) -> ET.Element:
    message = confirmation_message(
        application, confirmation, message_id="M2", order_message_id="M1", created_ms=CREATED_MS
    )
    return ET.fromstring(message)


def flat(tree: ET.Element, message: str) -> list[str]:
    """Each leaf as path=text, in order, without the namespace, which every element has."""
    prefix = f"{{{NAMESPACE}{message}}}"
    lines: list[str] = []

    def walk(element: ET.Element, path: str) -> None:
        assert element.tag.startswith(prefix)
        path += "/" + element.tag.removeprefix(prefix)
        path += "".join(f"[{name}={value}]" for name, value in element.attrib.items())
        if len(element):
            for child in element:
                walk(child, path)
        else:
            lines.append(f"{path}={element.text}")

    walk(tree, "")
    return lines


ACCOUNT = [
    "InvstmtAcctDtls/AcctId=100011554002",
    "InvstmtAcctDtls/SubAcctDtls/Id=21976257381660451",
]
FUND = [
    "FinInstrmDtls/Id/OthrPrtryId/Id=000198",
    "FinInstrmDtls/Id/OthrPrtryId/IdSrc/Dmst=CN",
]
SELLER = ["RltdPtyDtls/Id/Pty/PrtryId/Id=996", "RltdPtyDtls/Role/Cd=DIST"]


def order_lines(root: str, quantity: str) -> list[str]:
    head = [
        f"/Document/{root}/MsgId/Id=M1",
        f"/Document/{root}/MsgId/CreDtTm=2017-04-27T00:00:00.123Z",
        f"/Document/{root}/MltplOrdrDtls/OrdrDtTm=2017-04-27T09:01:02+08:00",
        *(f"/Document/{root}/MltplOrdrDtls/{line}" for line in ACCOUNT),
    ]
    order = ["OrdrRef=S1", *FUND, quantity, "PhysDlvryInd=false", *SELLER]
    return head + [f"/Document/{root}/MltplOrdrDtls/IndvOrdrDtls/{line}" for line in order]


def deal_lines(root: str, money: list[str]) -> list[str]:
    head = [
        f"/Document/{root}/MsgId/Id=M2",
        f"/Document/{root}/MsgId/CreDtTm=2017-04-27T00:00:00.123Z",
        f"/Document/{root}/RltdRef/Ref=M1",
        f"/Document/{root}/MltplExctnDtls/OrdrDtTm=2017-04-27T09:01:02+08:00",
        *(f"/Document/{root}/MltplExctnDtls/{line}" for line in ACCOUNT),
    ]
    units, net, gross, settled, fees = money
    deal = [
        *(
            "OrdrRef=S1",
            "DealRef=TA7",
            *FUND,
            f"UnitsNb={units}",
            f"NetAmt[Ccy=CNY]={net}",
            f"GrssAmt[Ccy=CNY]={gross}",
        ),
        *("TradDtTm/Dt=2017-04-28", "DealgPricDtls/Tp/Cd=NAVL", "DealgPricDtls/Val/Amt[Ccy=CNY]=1.2345"),
        *(f"SttlmAmt[Ccy=CNY]={settled}", "PrtlyExctdInd=false", "CumDvddInd=false"),
        *(f"TxOvrhd/TtlFees[Ccy=CNY]={fees}", "PhysDlvryInd=false", *SELLER),
    ]
    return head + [f"/Document/{root}/MltplExctnDtls/IndvExctnDtls/{line}" for line in deal]


@pytest.mark.parametrize("code", ["020", "022"])
def test_a_subscription_is_setr_010(code: str) -> None:
    tree = order_tree(replace(ORDER, code=code))
    assert flat(tree, SUBSCRIPTION_ORDER) == order_lines("SbcptOrdr", "AmtOrUnits/GrssAmt[Ccy=CNY]=1000.05")


def test_a_redemption_is_setr_004() -> None:
    assert flat(order_tree(REDEMPTION), REDEMPTION_ORDER) == order_lines("RedOrdr", "AmtOrUnitsOrPctg/UnitsNb=50.00")


def test_a_subscriptions_confirmation_is_setr_012() -> None:
    lines = deal_lines("SbcptOrdrConf", ["798.03", "985.05", "1000.05", "1000.05", "15.00"])
    assert flat(deal_tree(ORDER, DEAL), SUBSCRIPTION_CONFIRMATION) == lines


def test_a_redemptions_confirmation_is_setr_006() -> None:
    lines = deal_lines("RedOrdrConf", ["50.00", "60.00", "61.72", "60.00", "1.72"])
    assert flat(deal_tree(REDEMPTION, REDEEMED), REDEMPTION_CONFIRMATION) == lines


def test_an_allotment_of_less_is_partly_executed() -> None:
    order = replace(ORDER, code="020")
    part = replace(DEAL, code="130", amount=50_000)
    path = f".//{{{NAMESPACE}{SUBSCRIPTION_CONFIRMATION}}}PrtlyExctdInd"
    assert [deal_tree(order, deal).findtext(path) for deal in (part, replace(part, amount=100_005))] == [
        "true",
        "false",
    ]


@given(st.text(min_size=1, max_size=9))
def test_text_is_escaped_or_refused(text: str) -> None:
    try:
        tree = order_tree(replace(ORDER, distributor=text))
    except LocalError as error:
        is_refused = error.code == "no_iso_message"
        assert is_refused
        assert not text.isprintable()
    else:
        assert flat(tree, SUBSCRIPTION_ORDER)[-2].partition("=")[2] == text


def test_markup_in_text_stays_text() -> None:
    hostile = "</Id>&<"
    message = order_message(replace(ORDER, distributor=hostile), message_id="]]>", created_ms=CREATED_MS)
    assert b"&lt;/Id&gt;&amp;&lt;" in message
    lines = flat(ET.fromstring(message), SUBSCRIPTION_ORDER)
    assert (lines[0][-3:], lines[-2][-7:], len(lines)) == ("]]>", hostile, len(order_lines("SbcptOrdr", "")))


NOT_ORDERS = [
    ({"code": "036"}, "036 has no message"),
    ({"code": "001"}, "001 has no message"),
    ({"currency": "392"}, "currency 392"),
    ({"currency": ""}, "currency missing"),
    ({"product": ""}, "no product"),
    ({"ta_account": "", "transaction_account": ""}, "no account"),
]


@pytest.mark.parametrize(("changes", "reason"), NOT_ORDERS)
def test_what_has_no_message_is_refused(changes: dict[str, str], reason: str) -> None:
    with pytest.raises(LocalError, match=reason) as caught:
        order_tree(replace(ORDER, **changes))
    assert caught.value.code == "no_iso_message"


def test_message_ids_have_1_to_35_characters() -> None:
    for bad in ("", "M" * 36):
        with pytest.raises(LocalError, match="35 characters"):
            order_message(ORDER, message_id=bad, created_ms=0)


@pytest.mark.parametrize(
    "confirmation",
    [
        replace(DEAL, return_code="9020", reason="risk_mismatch", amount=0, volume=0),
        replace(DEAL, code="120", is_final=False),
        replace(DEAL, nav=0),
    ],
)
def test_what_executed_nothing_has_no_confirmation(confirmation: Confirmation) -> None:
    with pytest.raises(LocalError, match="nothing was executed"):
        deal_tree(ORDER, confirmation)


def test_a_charge_above_the_amount_is_refused() -> None:
    with pytest.raises(LocalError, match="more than the amount"):
        deal_tree(ORDER, replace(DEAL, charge=100_006))


def test_an_orders_messages_have_names_and_refer_to_each_other() -> None:
    order = replace(ORDER, code="020")
    acknowledged = replace(DEAL, code="120", amount=0, volume=0, is_final=False)
    messages = messages_of(order, [acknowledged, replace(DEAL, code="130")], created_ms=CREATED_MS)
    assert list(messages) == ["setr.010.001.04-S1.xml", "setr.012.001.05-TA7.xml"]
    lines = flat(ET.fromstring(messages["setr.012.001.05-TA7.xml"]), SUBSCRIPTION_CONFIRMATION)
    assert "/Document/SbcptOrdrConf/RltdRef/Ref=S1" in lines
    rejected = replace(REDEEMED, return_code="9052", reason="insufficient_units")
    assert list(messages_of(REDEMPTION, [rejected], created_ms=CREATED_MS)) == ["setr.004.001.04-S1.xml"]
    with pytest.raises(LocalError, match="036 has no message"):
        messages_of(replace(ORDER, code="036"), [], created_ms=CREATED_MS)
