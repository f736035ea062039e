"""What the tests of the issuer's side are made of: products, terms, applications, packages."""

from typing import Any

import msgspec

from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey
from services.agency.interfaces import ProductTerms, Terms
from services.agency.orders import Application, Code, Investor
from services.agency.packages import Package, make_package

CHAIN_ID = ChainId(b"c" * 32)
BANK_KEY = PrivateKey.from_secret(11)
ISSUER_KEY = PrivateKey.from_secret(12)
TODAY = 2026_11_22
NOW_MS = 1_795_320_000_000
"""A moment of that day in China."""

ADULT = Investor("user-b", "1", "110101199001010011", 1990_01_01, 3)


def terms(**changes: Any) -> Terms:
    """Terms that ask for everything."""
    plain = Terms(
        subject="type:fund",
        version=2,
        kinds=[code.value for code in Code],
        age_min=18,
        needs_identity=True,
        needs_registration=True,
        needs_risk_match=True,
        amount_min=1_00,
        amount_max=0,
        effective_ms=0,
        expires_ms=2**62,
    )
    return msgspec.structs.replace(plain, **changes)


def product(code: str = "000198", **changes: Any) -> ProductTerms:
    """A product of issuer-c."""
    plain = ProductTerms(
        product=code,
        issuer="issuer-c",
        interface="C-FUNDS",
        type="fund",
        risk=1,
        currency="156",
        nav=10_000,
        nav_date=TODAY,
        charge_basis_points=0,
        is_open=True,
        terms=terms(),
    )
    return msgspec.structs.replace(plain, **changes)


def application(serial: str, code: str = Code.SUBSCRIPTION, **changes: Any) -> Application:
    """A subscription of CNY 100.00 unless the changes say otherwise."""
    plain = Application(
        serial=serial,
        code=str(code),
        interface="C-FUNDS",
        product="000198",
        target_product="",
        ta_account="100000000001",
        transaction_account="T1",
        distributor="996",
        target_distributor="",
        amount=100_00 if code in ("020", "022") else 0,
        volume=0,
        currency="156",
        date=TODAY,
        time=120_000,
        terms_version=2,
        is_warned=False,
        investor=None,
        fields={},
    )
    return msgspec.structs.replace(plain, **changes)


def opening(serial: str, ta_account: str = "100000000001", *, code: str = "001", **changes: Any) -> Application:
    """An application that opens an account, or another one about accounts."""
    changes = {"investor": ADULT, "product": "", "terms_version": 0, **changes}
    return application(serial, code, ta_account=ta_account, **changes)


def package(*applications: Application, number: int = 1, bank: str = "bank-a", key: PrivateKey = BANK_KEY) -> Package:
    """What a bank makes of them; ``number`` makes its salts."""
    salts = [bytes([number % 256, place % 256, place // 256]) + bytes(29) for place in range(len(applications))]
    return make_package(
        key,
        CHAIN_ID,
        bank=bank,
        issuer="issuer-c",
        epoch=1,
        created_ms=NOW_MS,
        salts=salts,
        applications=applications,
    )
