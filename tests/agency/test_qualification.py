"""Whether an application may be taken, by the rules Q1 to Q7."""

import itertools
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from consensus.ledger.errors import LocalError
from services.agency.interfaces import ProductTerms
from services.agency.ofd.codes import RETURN_CODES
from services.agency.orders import Application, Code, Investor
from services.agency.qualification import age_on, date_of, is_date, risk_reason, time_ms, unqualified
from tests.agency.issuer_support import ADULT, TODAY, application, opening, product, terms

OTHER = product("C00002", risk=4)


def reason(
    order: Application,
    investor: Investor | None = ADULT,
    about: ProductTerms | None = product(),  # noqa: B008
    target: ProductTerms | None = None,
) -> str:
    return unqualified(order, investor, about, target, today=TODAY)


def test_an_order_in_order_is_taken() -> None:
    for code, changes in (
        ("020", {}),
        ("022", {}),
        ("024", {"volume": 1}),
        ("026", {"volume": 1}),
        ("027", {"volume": 1}),
        ("028", {"volume": 1}),
    ):
        assert reason(application("A1", code, **changes)) == ""
    conversion = application("A1", "036", volume=1, target_product="C00002", is_warned=True)
    assert reason(conversion, target=OTHER) == ""
    assert reason(opening("A1"), None, None) == ""


@pytest.mark.parametrize(
    ("asked", "holder", "expected"),
    [
        ({"needs_risk_match": True}, ADULT, "risk_mismatch"),
        ({"age_min": 60}, ADULT, "minor"),
        ({"needs_identity": True}, replace(ADULT, name=""), "identity_missing"),
        ({"needs_registration": True}, None, "unknown_user"),
    ],
)
def test_a_conversion_does_what_the_terms_of_either_product_ask(
    asked: dict[str, object], holder: Investor | None, expected: str
) -> None:
    lax = {"age_min": 0, "needs_risk_match": False, "needs_identity": False, "needs_registration": False}
    conversion = application("A1", "036", volume=1, target_product="C00002")
    plain, strict = terms(**lax), terms(**lax | asked)
    given_up, target = product(terms=plain), product("C00002", risk=4, terms=strict)
    assert reason(conversion, holder, given_up, product("C00002", risk=4, terms=plain)) == ""
    assert reason(conversion, holder, given_up, target) == expected
    assert reason(conversion, holder, product(terms=strict), product("C00002", risk=4, terms=plain)) == expected


# -- every reason ------------------------------------------------------------------------------------------

TABLE = [
    ("not_supported", application("A1", "099"), ADULT, product(), None),
    ("unknown_product", application("A1"), ADULT, None, None),
    ("wrong_interface", application("A1", interface="F-FUNDS"), ADULT, product(), None),
    ("no_terms", application("A1"), ADULT, product(terms=None), None),
    ("kind_forbidden", application("A1"), ADULT, product(terms=terms(kinds=["024"])), None),
    ("stale_terms", application("A1", terms_version=1), ADULT, product(), None),
    ("stale_terms", application("A1", terms_version=3), ADULT, product(), None),
    ("unknown_user", application("A1"), None, product(), None),
    ("identity_missing", application("A1"), None, product(terms=terms(needs_registration=False)), None),
    ("identity_missing", application("A1"), replace(ADULT, birth_date=0), product(), None),
    ("identity_missing", application("A1"), replace(ADULT, birth_date=TODAY + 1), product(), None),
    ("identity_missing", application("A1"), replace(ADULT, certificate_number="0000"), product(), None),
    ("identity_missing", application("A1"), replace(ADULT, name=" "), product(), None),
    ("minor", application("A1"), replace(ADULT, birth_date=2008_11_23), product(), None),
    ("minor", application("A1", date=2036_01_01), replace(ADULT, birth_date=2010_01_01), product(), None),
    ("bad_date", application("A1", date=2026_02_29), ADULT, product(), None),
    ("risk_mismatch", application("A1"), ADULT, product(risk=4), None),
    ("lowest_class", application("A1", is_warned=True), replace(ADULT, risk_class=0), product(risk=2), None),
    ("product_closed", application("A1"), ADULT, product(is_open=False), None),
    ("wrong_currency", application("A1", currency="840"), ADULT, product(), None),
    ("amount_missing", application("A1", amount=0), ADULT, product(terms=terms(amount_min=0)), None),
    ("amount_missing", application("A1", "024", amount=100, volume=0), ADULT, product(), None),
    ("amount_too_small", application("A1", amount=99), ADULT, product(), None),
    ("amount_too_large", application("A1", amount=101), ADULT, product(terms=terms(amount_max=100)), None),
    ("bad_target", application("A1", "036", volume=1, target_product="C00002"), ADULT, product(), None),
    ("bad_target", application("A1", "036", volume=1, target_product="000198"), ADULT, product(), product()),
    (
        "bad_target",
        application("A1", "036", volume=1, target_product="F00001"),
        ADULT,
        product(),
        product("F00001", issuer="issuer-f"),
    ),
    (
        "no_terms",
        application("A1", "036", volume=1, target_product="C00002"),
        ADULT,
        product(),
        replace(OTHER, terms=None),
    ),
    ("risk_mismatch", application("A1", "036", volume=1, target_product="C00002"), ADULT, product(), OTHER),
    (
        "product_closed",
        application("A1", "036", volume=1, target_product="C00002", is_warned=True),
        ADULT,
        product(),
        replace(OTHER, is_open=False),
    ),
]


@pytest.mark.parametrize(("expected", "order", "investor", "about", "target"), TABLE)
def test_each_reason_has_its_case(
    expected: str, order: Application, investor: Investor, about: ProductTerms, target: ProductTerms
) -> None:
    assert reason(order, investor, about, target) == expected
    assert expected in RETURN_CODES


def test_who_leaves_is_not_kept_by_age_risk_or_a_closed_product() -> None:
    young = replace(ADULT, birth_date=2015_01_01, risk_class=0)
    for code in ("024", "026", "027", "028"):
        assert reason(application("A1", code, volume=1), young, product(risk=5, is_open=False)) == ""


# -- suitability -------------------------------------------------------------------------------------------

SUITS = {0: 1, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5}
"""Class → highest risk without a warning; 0 is the lowest class inside C1."""


@pytest.mark.parametrize("is_warned", [False, True])
@pytest.mark.parametrize("is_professional", [False, True])
def test_suitability_over_all_classes_and_risks(is_professional: bool, is_warned: bool) -> None:
    for risk_class, risk in itertools.product(range(6), range(1, 6)):
        investor = replace(ADULT, risk_class=risk_class, is_professional=is_professional)
        if risk <= SUITS[risk_class]:
            expected = ""
        elif risk_class == 0:
            expected = "lowest_class"
        else:
            expected = "" if is_professional or is_warned else "risk_mismatch"
        assert risk_reason(investor, risk, is_warned=is_warned) == expected
        order = application("A1", is_warned=is_warned)
        assert reason(order, investor, product(risk=risk)) == expected


def test_terms_that_ask_for_nothing_take_everybody() -> None:
    free = terms(age_min=0, needs_identity=False, needs_registration=False, needs_risk_match=False)
    for investor in (None, replace(ADULT, birth_date=2020_01_01, risk_class=0)):
        assert reason(application("A1"), investor, product(risk=5, terms=free)) == ""


# -- age ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("birth_date", "day", "age"),
    [
        (2000_02_29, 2018_02_28, 17),
        (2000_02_29, 2018_03_01, 18),
        (2000_02_29, 2020_02_29, 20),
        (2008_11_22, 2026_11_22, 18),
        (2008_11_23, 2026_11_22, 17),
        (2007_12_31, 2026_01_01, 18),
        (2026_11_22, 2026_11_22, 0),
    ],
)
def test_age_in_full_years(birth_date: int, day: int, age: int) -> None:
    assert age_on(birth_date, day) == age


def test_a_date_ahead_makes_nobody_older() -> None:
    nearly = replace(ADULT, birth_date=2008_11_23)
    assert reason(application("A1", date=2026_11_23), nearly) == "minor"
    assert reason(application("A1", date=2026_11_23), replace(ADULT, birth_date=2008_11_22)) == ""


def test_an_institution_has_no_age() -> None:
    assert reason(application("A1"), replace(ADULT, is_institution=True, birth_date=0)) == ""


# -- terms in flight ---------------------------------------------------------------------------------------


def test_terms_that_changed_in_flight() -> None:
    changed_ms = time_ms(2026_11_22, 120_001)
    now = terms(effective_ms=changed_ms)
    before = terms(version=1, effective_ms=0, expires_ms=2**62)
    order = application("A1", terms_version=1)
    assert reason(order, about=product(terms=now, terms_before=before)) == ""
    assert reason(replace(order, time=120_001), about=product(terms=now, terms_before=before)) == "stale_terms"
    assert reason(order, about=product(terms=now)) == "stale_terms"
    ended = replace(before, expires_ms=changed_ms - 1_000)
    assert reason(order, about=product(terms=now, terms_before=ended)) == "stale_terms"
    begun = replace(before, effective_ms=changed_ms - 500)
    assert reason(order, about=product(terms=now, terms_before=begun)) == "stale_terms"
    narrow = replace(before, kinds=["024"])
    assert reason(order, about=product(terms=now, terms_before=narrow)) == "stale_terms"
    assert reason(replace(order, date=2026_13_01), about=product(terms=now, terms_before=before)) == "bad_date"


# -- the calendar ------------------------------------------------------------------------------------------

CHINA = timezone(timedelta(hours=8))


@given(st.dates(date(1970, 1, 2), date(2400, 1, 1)), st.times())
def test_times_are_those_of_the_calendar(day: date, moment: object) -> None:
    number = int(day.strftime("%Y%m%d"))
    clock = int(str(moment)[:8].replace(":", ""))
    expected = datetime.combine(day, datetime.strptime(f"{clock:06d}", "%H%M%S").time(), CHINA)
    assert is_date(number)
    assert time_ms(number, clock) == expected.timestamp() * 1000
    assert date_of(time_ms(number, clock)) == number
    assert datetime.fromtimestamp(time_ms(number, clock) / 1000, UTC) == expected


@given(st.integers(0, 99_991_231))
def test_a_date_is_one_of_the_calendar_or_refused(number: int) -> None:
    try:
        datetime.strptime(f"{number:08d}", "%Y%m%d")
    except ValueError:
        assert not is_date(number)
        with pytest.raises(LocalError, match="no date"):
            time_ms(number, 0)
    else:
        assert is_date(number)


def test_kinds_are_those_of_the_standard() -> None:
    assert {code.value for code in Code} == {
        "001",
        "002",
        "003",
        "008",
        "020",
        "022",
        "024",
        "026",
        "027",
        "028",
        "036",
    }
