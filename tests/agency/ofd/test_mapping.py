"""Records become applications and confirmations and come back as they were."""

import dataclasses

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.agency.ofd.codes import REASONS, RETURN_CODES, UNNAMED, reason_of, return_code
from services.agency.ofd.files import file_name, make_record, new_header
from services.agency.ofd.layout import FIELDS, LAYOUTS, FileType, Kind
from services.agency.ofd.mapping import (
    NO_INTERFACE,
    application_file,
    application_of,
    applications_of,
    confirmation_file,
    confirmation_of,
    confirmation_record,
    record_of,
)
from services.agency.ofd.reader import read, read_path
from services.agency.ofd.synthetic import investor_of, orders_file, registrations
from services.agency.ofd.writer import new_file, write
from services.agency.orders import ACCOUNT_CODES, Application, Code, Confirmation, Investor
from tests.agency.ofd.support import refusal
from tests.conftest import data_folder

HEADER = new_header(FileType.TRADE_APPLICATIONS, creator="996", receiver="H0", date="20170427")
ACCOUNT_HEADER = new_header(FileType.ACCOUNT_APPLICATIONS, creator="996", receiver="H0", date="20170427")

OWN = {
    *("AppSheetSerialNo", "BusinessCode", "FundCode", "CodeOfTargetFund", "TAAccountID", "TransactionAccountID"),
    *("DistributorCode", "TargetDistributorCode", "ApplicationAmount", "ApplicationVol", "CurrencyType"),
    *("TransactionDate", "TransactionTime", "InvestorName", "CertificateType", "CertificateNo", "InvestorsBirthday"),
    *("ClientRiskRate", "IndividualOrInstitution"),
}
"""Fields that an application of either type has attributes for."""


def letters(alphabet: str, most: int, least: int = 0) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=least, max_size=most)


DIGITS, WORD = "0123456789", "0123456789ABCdef"
printable = st.characters(codec="gb18030", exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn"))
dates = st.dates().map(lambda day: int(f"{day:%Y%m%d}") if day.year > 999 else 0)
times = st.times().map(lambda time: int(f"{time:%H%M%S}"))


def texts(width: int, least: int = 0) -> st.SearchStrategy[str]:
    """Text of up to ``width`` bytes of GB18030 that no padding touches."""
    return st.text(printable, min_size=least, max_size=width).filter(
        lambda text: len(text.encode("gb18030")) <= width and not text.endswith(" ")
    )


def other_fields(file_type: FileType) -> st.SearchStrategy[dict[str, str]]:
    values: dict[str, st.SearchStrategy[str]] = {}
    for field in LAYOUTS[file_type].fields:
        if field.name not in OWN:
            match field.kind:
                case Kind.NUMBER:
                    values[field.name] = st.integers(1, 10**field.width - 1).map(str)
                case Kind.DIGITS:
                    values[field.name] = letters(DIGITS, field.width, 1)
                case Kind.TEXT:
                    values[field.name] = texts(min(field.width, 12), 1)
    names = st.lists(st.sampled_from(sorted(values)), unique=True, max_size=4)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: values[name] for name in chosen}))


investors = st.builds(
    Investor,
    name=texts(40, 1),
    certificate_type=st.sampled_from("0123456789A"),
    certificate_number=letters(WORD + "-", 30, 1),
    birth_date=dates,
    risk_class=st.integers(0, 5),
    is_institution=st.booleans(),
    is_professional=st.booleans(),
)

common = {
    "serial": letters(WORD + "_-", 24, 1),
    "interface": st.just("C-FUNDS"),
    "ta_account": letters(WORD, 12),
    "transaction_account": letters(WORD, 17),
    "distributor": letters(WORD, 9),
    "date": dates,
    "time": times,
    "terms_version": st.integers(0, 9),
    "is_warned": st.booleans(),
}

trades: st.SearchStrategy[Application] = st.builds(
    Application,
    **common,
    code=st.sampled_from([code.value for code in Code if code not in ACCOUNT_CODES]),
    product=letters(WORD, 6),
    target_product=letters(WORD, 6),
    target_distributor=letters(WORD, 9),
    amount=st.integers(0, 10**16 - 1),
    volume=st.integers(0, 10**16 - 1),
    currency=letters(DIGITS, 3),
    investor=st.none(),
    fields=other_fields(FileType.TRADE_APPLICATIONS),
)

accounts: st.SearchStrategy[Application] = st.builds(
    Application,
    **common,
    code=st.sampled_from([code.value for code in ACCOUNT_CODES]),
    product=st.just(""),
    target_product=st.just(""),
    target_distributor=st.just(""),
    amount=st.just(0),
    volume=st.just(0),
    currency=st.just(""),
    investor=st.none() | investors,
    fields=other_fields(FileType.ACCOUNT_APPLICATIONS),
)

confirmations: st.SearchStrategy[Confirmation] = st.builds(
    Confirmation,
    serial=st.just(""),
    code=st.just(""),
    ta_serial=letters(WORD, 20, 1),
    ta_account=letters(WORD, 12),
    return_code=letters("0123456789ABC", 4, 4),
    reason=st.just("") | letters("abc_9", 40, 1),
    amount=st.integers(0, 10**16 - 1),
    volume=st.integers(0, 10**16 - 1),
    nav=st.integers(0, 10**7 - 1),
    charge=st.integers(0, 10**10 - 1),
    date=dates,
    is_final=st.booleans(),
)


@settings(max_examples=50)
@given(st.lists(trades, max_size=3))
def test_trade_applications_come_back_from_their_file(applications: list[Application]) -> None:
    file = read(write(application_file(HEADER, applications, "f")), "f")
    again = [
        application_of(record, interface="C-FUNDS", terms_version=said.terms_version, is_warned=said.is_warned)
        for record, said in zip(file.records, applications, strict=True)
    ]
    assert again == applications


@settings(max_examples=50)
@given(st.lists(accounts, max_size=3))
def test_account_applications_come_back_from_their_file(applications: list[Application]) -> None:
    file = read(write(application_file(ACCOUNT_HEADER, applications, "f")), "f")
    again = [
        application_of(record, interface="C-FUNDS", terms_version=said.terms_version, is_warned=said.is_warned)
        for record, said in zip(file.records, applications, strict=True)
    ]
    assert again == applications


@given(trades | accounts, confirmations)
def test_confirmations_come_back_from_their_file(application: Application, confirmation: Confirmation) -> None:
    is_account = application.code in ACCOUNT_CODES
    outcome = msgspec.structs.replace(
        confirmation,
        serial=application.serial,
        code=Code(application.code).confirmation,
        reason=confirmation.reason or reason_of(confirmation.return_code),
        **({"amount": 0, "volume": 0, "nav": 0, "charge": 0, "is_final": True} if is_account else {}),
    )
    received = ACCOUNT_HEADER if is_account else HEADER
    file = read(write(confirmation_file(received, [(application, outcome)], date="20170428")), "f")
    assert file.header.file_type == ("02" if is_account else "04")
    assert (file.header.creator, file.header.receiver, file.header.date) == ("H0", "996", "20170428")
    assert confirmation_of(file.records[0]) == outcome


def test_the_real_file_comes_back_from_its_applications() -> None:
    file = read_path(data_folder("fund") / "OFD_996_H0_20170427_03.txt")
    applications = applications_of(file, {"000198": "C-FUNDS"})
    assert sum(application.amount for application in applications) == 645_735_805
    assert {application.interface for application in applications} == {"C-FUNDS"}
    assert write(new_file(file.header, [record_of(application) for application in applications], "f")) == write(file)


def test_the_answer_to_the_real_file_reconciles_with_it() -> None:
    file = read_path(data_folder("fund") / "OFD_996_H0_20170427_03.txt")
    outcomes: list[tuple[Application, Confirmation]] = []
    for place, order in enumerate(applications_of(file, {"000198": "C-FUNDS"})):
        is_own = order.distributor == "996"
        reason, amount = ("", order.amount) if is_own else ("foreign_distributor", 0)
        outcome = Confirmation(
            serial=order.serial,
            code="122",
            ta_serial=f"TA{place:06d}",
            ta_account=order.ta_account,
            return_code=return_code(reason),
            reason=reason,
            amount=amount,
            volume=amount,
            nav=10_000 if is_own else 0,
            charge=0,
            date=20170428,
            is_final=True,
        )
        outcomes.append((order, outcome))
    answer = confirmation_file(file.header, outcomes, date="20170428")
    assert file_name(answer.header) == "OFD_H0_996_20170428_04.TXT"
    again = read(write(answer), file_name(answer.header))
    assert [confirmation_of(record) for record in again.records] == [outcome for _, outcome in outcomes]
    applied = sum(record.number("ApplicationAmount") for record in again.records)
    accepted = sum(record.number("ConfirmedAmount") for record in again.records)
    rejected = [record for record in again.records if record.text("ReturnCode") != "0000"]
    assert (applied, applied - accepted, len(rejected)) == (645_735_805, 39_611, 1)


def test_a_confirmation_echoes_what_the_application_said() -> None:
    application = applications_of(orders_file(1, orders=1, accounts=1, foreign=0), {"000198": "C-FUNDS"})[0]
    confirmation = Confirmation(
        application.serial, "122", "TA1", application.ta_account, "9020", "risk_mismatch", 0, 0, 0, 0, 20170428, True
    )
    record = confirmation_record(application, confirmation)
    assert record.text("FundCode") == application.product
    assert record.number("ApplicationAmount") == application.amount
    assert record.text("Specification") == application.fields["Specification"]
    assert record.text("DepositAcct") == application.fields["DepositAcct"]
    assert (record.text("ReturnCode"), record.text("ErrorDetail")) == ("9020", "risk_mismatch")
    assert (record.text("TransactionDate"), record.text("TransactionCfmDate")) == ("20170427", "20170428")


def test_a_conversion_tells_the_units_of_both_funds() -> None:
    order = applications_of(orders_file(1, orders=1, accounts=1, foreign=0), {"000198": "C-FUNDS"})[0]
    order = msgspec.structs.replace(order, code="036", amount=0, volume=5_000, target_product="C00002")
    outcome = Confirmation(order.serial, "136", "TA1", order.ta_account, "0000", "", 6_000, 4_860, 12_345, 0, 1, True)
    outcome = msgspec.structs.replace(outcome, date=20170428)
    record = confirmation_record(order, outcome)
    assert (record.text("FundCode"), record.text("CodeOfTargetFund")) == ("000198", "C00002")
    assert (record.number("ConfirmedVol"), record.number("CfmVolOfTargetFund")) == (5_000, 4_860)
    assert (record.number("NAV"), record.number("TargetNAV"), record.number("ConfirmedAmount")) == (0, 12_345, 6_000)
    assert confirmation_of(record) == outcome
    refused = msgspec.structs.replace(
        outcome, return_code="9052", reason="insufficient_units", amount=0, volume=0, nav=0
    )
    assert confirmation_record(order, refused).number("ConfirmedVol") == 0


def test_a_product_without_an_interface_is_kept_for_the_sales_end_to_drop() -> None:
    file = orders_file(1, orders=6, accounts=5, products=("000198", "C00002"))
    applications = applications_of(file, {"000198": "C-FUNDS"})
    assert {(each.product, each.interface) for each in applications} == {
        ("000198", "C-FUNDS"),
        ("C00002", NO_INTERFACE),
    }


BAD_RECORDS = [
    ({"AppSheetSerialNo": "a b"}, "AppSheetSerialNo"),
    ({"AppSheetSerialNo": None}, "AppSheetSerialNo"),
    ({"BusinessCode": "22"}, "BusinessCode"),
    ({"FundCode": "基金"}, "FundCode"),
    ({"TransactionDate": "20170229"}, "TransactionDate: 20170229 is no date"),
    ({"TransactionDate": "2017"}, "TransactionDate"),
    ({"TransactionTime": "240000"}, "TransactionTime: 240000 is no time"),
    ({"TransactionTime": "1200"}, "TransactionTime"),
    ({"TAAccountID": "1 2"}, "TAAccountID"),
]


@pytest.mark.parametrize(("values", "place"), BAD_RECORDS)
def test_a_record_that_is_no_application_is_named_with_line_and_field(
    values: dict[str, str | None], place: str
) -> None:
    good: dict[str, str | None] = {
        "AppSheetSerialNo": "1",
        "BusinessCode": "022",
        "FundCode": "000198",
        "TransactionDate": "20160229",
    }
    layout = LAYOUTS[FileType.TRADE_APPLICATIONS]
    file = new_file(HEADER, [make_record(layout, good), make_record(layout, good | values)], "f")
    message = refusal(lambda: applications_of(read(write(file), "orders.txt"), {"000198": "C-FUNDS"}))
    assert message.startswith(f"orders.txt, line 87, {place}"), message


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"ClientRiskRate": "6"}, "ClientRiskRate"),
        ({"ClientRiskRate": None}, "ClientRiskRate"),
        ({"IndividualOrInstitution": "2"}, "IndividualOrInstitution"),
        ({"CertificateNo": None}, "CertificateNo"),
        ({"CertificateType": "x"}, "CertificateType"),
        ({"InvestorsBirthday": "19991301"}, "InvestorsBirthday"),
    ],
)
def test_an_account_application_with_a_bad_profile_is_named(values: dict[str, str | None], place: str) -> None:
    application = registrations(
        applications_of(orders_file(1, orders=1, accounts=1), {}), 1, interface="C-FUNDS", distributor="996"
    )[0]
    record = record_of(application)
    said = {name: record.values[at] for name, at in record.places.items()}
    file = new_file(ACCOUNT_HEADER, [make_record(LAYOUTS[FileType.ACCOUNT_APPLICATIONS], said | values)], "f")
    message = refusal(lambda: applications_of(read(write(file), "f"), {}, account_interface="C-FUNDS"))
    assert message.startswith(f"f, line 96, {place}"), message


def test_what_a_type_has_no_field_for_is_refused() -> None:
    order = applications_of(orders_file(1, orders=1, accounts=1), {"000198": "C-FUNDS"})[0]
    account = registrations([order], 1, interface="C-FUNDS", distributor="996")[0]
    replace = msgspec.structs.replace
    assert "no field FundCode" in refusal(lambda: record_of(replace(account, product="000198")))
    assert "no field CertificateNo" in refusal(lambda: record_of(replace(order, investor=account.investor, fields={})))
    assert "Nonsense is no field" in refusal(lambda: record_of(replace(order, fields={"Nonsense": "1"})))
    assert "SpecifyFee is no field, or no number" in refusal(
        lambda: record_of(replace(order, fields={"SpecifyFee": "x"}))
    )
    assert "FundCode is said twice" in refusal(lambda: record_of(replace(order, fields={"FundCode": "1"})))
    assert "stands in no 03" in refusal(lambda: application_file(HEADER, [account]))
    confirmed = dataclasses.replace(HEADER, file_type=FileType.TRADE_CONFIRMATIONS)
    assert "nothing answers" in refusal(lambda: confirmation_file(confirmed, [], date="20170428"))
    assert "holds no applications" in refusal(lambda: applications_of(new_file(confirmed, [], "f"), {}))


def test_each_reason_has_digits_of_its_own() -> None:
    assert len(REASONS) == len(RETURN_CODES)
    assert (return_code(""), reason_of("0000")) == ("0000", "")
    assert all(reason_of(return_code(reason)) == reason for reason in RETURN_CODES)
    assert all(code.isdigit() and len(code) == 4 for code in RETURN_CODES.values())
    assert return_code("a_word_of_tomorrow") == UNNAMED not in REASONS
    assert reason_of("0001") == "rejected"


def test_synthetic_files_have_the_form_of_the_real_one() -> None:
    file = read(write(orders_file(5)), "f")
    applications = applications_of(file, {"000198": "C-FUNDS"})
    assert len(applications) == len({application.serial for application in applications}) == 1_006
    assert len({application.ta_account for application in applications}) == 862
    assert len({application.transaction_account for application in applications}) == 826
    assert sum(application.distributor != "996" for application in applications) == 1
    assert all(application.amount and not application.volume for application in applications)
    assert file_name(file.header) == "OFD_996_H0_20170427_03.TXT"
    assert file_name(file.header, 2) == "OFD_996_H0_20170427_03_002.TXT"
    redemptions = applications_of(orders_file(5, orders=9, accounts=3, code=Code.REDEMPTION), {})
    assert all(application.volume and not application.amount for application in redemptions)


def test_each_holder_of_a_file_is_registered_once_and_qualifies_by_age() -> None:
    applications = applications_of(orders_file(5), {"000198": "C-FUNDS"})
    asked = registrations(applications, 5, interface="C-FUNDS", distributor="996")
    assert [each.ta_account for each in asked] == list(dict.fromkeys(each.ta_account for each in applications))
    assert len({each.serial for each in asked}) == 862
    for each in asked:
        assert each.investor == investor_of(5, each.ta_account)
        assert each.investor.birth_date + 180_000 <= 20170427
        assert 1 <= each.investor.risk_class <= 5
    file = read(write(application_file(ACCOUNT_HEADER, asked)), "f")
    assert applications_of(file, {}, account_interface="C-FUNDS") == asked


def test_more_holders_than_orders_are_refused() -> None:
    with pytest.raises(Exception, match="3 accounts"):
        orders_file(1, orders=2, accounts=3)


def test_own_fields_are_known() -> None:
    assert FIELDS.keys() >= OWN
