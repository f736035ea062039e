"""Fields and layouts of fund files in the form of JR/T 0017-2012, versions 20 and 21. Pure.

A field has one width wherever it stands. Kinds as in the standard: ``C`` text, padded with spaces on the right; ``A``
digits as text, padded likewise, blank where nothing is said; ``N`` a number, padded with zeros on the left, whose
last ``decimals`` digits stand behind a point that is not written. Widths are bytes of GB18030.

A file names its fields in its header. It may leave out optional ones, but what it has stands in the layout's order.
Only type 03 could be held against a real file; ``docs/fund-files.md`` says where the others come from.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from consensus.ledger.errors import InvariantError


class Kind(StrEnum):
    """How a field's bytes are read."""

    TEXT = "C"
    DIGITS = "A"
    NUMBER = "N"


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its name, kind, width in bytes and, of a number, how many digits stand behind the point."""

    name: str
    kind: Kind
    width: int
    decimals: int = 0

    @property
    def blank(self) -> int | None:
        """The value of a field that nothing is said in: zeros of a number, as the real file has it, else spaces."""
        return 0 if self.kind is Kind.NUMBER else None


class FileType(StrEnum):
    """What the records of a file are."""

    ACCOUNT_APPLICATIONS = "01"
    ACCOUNT_CONFIRMATIONS = "02"
    TRADE_APPLICATIONS = "03"
    TRADE_CONFIRMATIONS = "04"
    HOLDINGS = "05"


@dataclass(frozen=True, slots=True)
class Layout:
    """Fields of one kind of record, in their order.

    ``required`` names those that a file cannot leave out, ``places`` says where each stands.
    """

    file_type: FileType
    fields: tuple[Field, ...]
    required: frozenset[str]
    places: Mapping[str, int] = dataclasses.field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", {field.name: place for place, field in enumerate(self.fields)})

    @property
    def record_bytes(self) -> int:
        """Width of a record without its line end."""
        return sum(field.width for field in self.fields)

    def only(self, names: Iterable[str]) -> "Layout":
        """Return the layout of a file that has these fields alone; they are known and ascend."""
        return Layout(self.file_type, tuple(self.fields[self.places[name]] for name in names), self.required)


# name, kind and width[.decimals]
_FIELDS = """
    AcceptMethod C1; AccountAbbr C12; AccountCardID C8; AccountStatus C1; AcctNameOfFMInClearingAgency C60;
    AcctNameOfInvestorInClearingAgency C60; AcctNoOfFMInClearingAgency C28; AcctNoOfInvestorInClearingAgency C28;
    AchievementCompen N16.2; AchievementPay N16.2; ActualController C80; Address C120; AgencyFee N10.2;
    AlternationDate A8; AnnualIncome N8; AppSheetSerialNo C24; ApplicationAmount N16.2; ApplicationVol N16.2;
    AvailableVol N16.2; BackenloadDiscount N5.4; BatchNumOfPeSubs N16.2; BeginDateOfPeriodicSubs A8; BranchCode C9;
    BreachFee N16.2; BreachFeeBackToFund N16.2; Broker C12; BusinessCode A3; BusinessFinishFlag C1; CapitalMode C2;
    CertValidDate A8; CertificateNo C30; CertificateType C1; CfmVolOfTargetFund N16.2; ChangeAgencyFee N16.2;
    ChangeFee N16.2; Charge N10.2; ChargeType C1; City C6; ClearingAgency C9; ClearingAgencyCode C9;
    ClientRiskRate C1; CodeOfTargetFund C6; CombineNum C6; CommendPerson C40; CommendPersonType C1;
    ConfidentialDocumentCode C8; ConfirmedAmount N16.2; ConfirmedVol N16.2; ControlHolder C80; CorpName C40;
    CorpoProperty C2; County C6; CurrencyType A3; CustomerNo C12; DateOfPeriodicSubs A8; DaysRedemptionInAdvance N5;
    DefDividendMethod C1; DeliverType C1; DeliverWay C8; DepositAcct C19; DetailCapticalMode C2; DetailFlag C1;
    DiscountRateOfCommission N5.4; DistributorCode C9; DividendRatio N16.2; DownLoaddate A8; EducationLevel C3;
    EmailAddress C40; EndDateOfPeriodicSubs A8; EnglishFamliyName C20; EnglishFirstName C20; ErrorDetail C60;
    FamilyNum N2; FaxNo C24; FeeCalculator C1; ForceRedemptionType C1; FreezingDeadline A8; FrequencyOfPeSubs N5;
    FromTAFlag A1; FrozenCause C1; FrozenMethod C1; FundCode C6; FutureBuyDate A8; FutureSubscribeDate A8;
    GeneralTASerialNO C20; GuaranteedAmount N16.2; HobbyType C2; HomeTelNo C22; IndividualOrInstitution A1;
    InstReprCertValidDate A8; InstReprIDCode C30; InstReprIDType C1; InstReprManageRange C2; InstReprName C20;
    InstTranCertValidDate A8; InstitutionType C1; Interest N10.2; InterestTax N16.2; InvestorName C120;
    InvestorsBirthday A8; LargeBuyFlag C1; LargeRedemptionFlag C1; ManagerRealRatio N7.4; MarriageStatus C1;
    MediaHobby C1; MinFee N10.2; MinorFlag C1; MobileTelNo C24; MultiAcctFlag A1; NAV N7.4; Nationality C3; NetNo C9;
    OfficeTelNo C22; OriginalAppDate A8; OriginalAppSheetNo C24; OriginalCfmDate A8; OriginalSerialNo C20;
    OriginalSubsDate A8; OtherFee1 N10.2; OtherFee2 N16.2; Penates N16.2; PeriodSubTimeUnit C1; PostCode A6;
    Province C6; PunishFee N16.2; PurposeOfPeSubs C40; RaiseInterest N16.2; RateFee N9.8; RationProtocolNo C20;
    RationType C1; RecuperateAgencyFee N16.2; RecuperateFee N16.2; RedemptionDateInAdvance A8;
    RedemptionInAdvanceFlag C1; RedemptionReason C1; RefundAmount N16.2; RegionCode A4; ReturnCode C4;
    SHSecuritiesAccountID C10; SZSecuritiesAccountID C10; SalePercent N8.5; SalesPromotion C3;
    SendDayOfPeriodicSubs N2; SerialNoOfPeriodicSubs C5; Sex A1; ShareClass C1; ShareRegisterDate A8;
    SharesAdjustmentFlag C1; SourceType C1; Specification C60; SpecifyFee N16.2; SpecifyRateFee N9.8; StaffNum N16.2;
    StampDuty N16.2; TAAccountID C12; TASerialNO C20; TakeIncomeFlag C1; TargetBranchCode C9;
    TargetDistributorCode C9; TargetFundPrice N7.4; TargetNAV N7.4; TargetRegionCode A4; TargetRegistrarCode C2;
    TargetShareType C1; TargetTAAccountID C12; TargetTransactionAccountID C17; Tax N16.2; TelNo C22;
    TermOfPeriodicSubs N5; TotalBackendLoad N16.2; TotalFrozenVol N16.2; TotalTransFee N10.2;
    TotalVolOfDistributorInTA N16.2; TradingMethod C8; TradingPrice N7.4; TransactionAccountID C17;
    TransactionCfmDate A8; TransactionDate A8; TransactionTime A6; TransactorCertNo C30; TransactorCertType C1;
    TransactorIDType C1; TransactorName C20; TransferDirection A1; TransferFee N10.2;
    UndistributeMonetaryIncome N16.2; UndistributeMonetaryIncomeFlag C1; ValidPeriod N2;
    VarietyCodeOfPeriodicSubs C5; Vocation C4; VocationCode C3; VolumeByInterest N16.2
"""

_ORDER = {
    FileType.ACCOUNT_APPLICATIONS: """
        Address InstReprIDCode InstReprIDType InstReprName AppSheetSerialNo CertificateType CertificateNo InvestorName
        TransactionDate TransactionTime IndividualOrInstitution PostCode TransactorCertNo TransactorCertType
        TransactorName TransactionAccountID DistributorCode BusinessCode AcctNoOfFMInClearingAgency
        AcctNameOfFMInClearingAgency ClearingAgencyCode InvestorsBirthday DepositAcct RegionCode EducationLevel
        EmailAddress FaxNo VocationCode HomeTelNo AnnualIncome MobileTelNo BranchCode OfficeTelNo AccountAbbr
        ConfidentialDocumentCode Sex SHSecuritiesAccountID SZSecuritiesAccountID TAAccountID TelNo TradingMethod
        MinorFlag DeliverType TransactorIDType AccountCardID MultiAcctFlag TargetTransactionAccountID
        AcctNameOfInvestorInClearingAgency AcctNoOfInvestorInClearingAgency ClearingAgency DeliverWay Nationality NetNo
        Broker CorpName CertValidDate InstTranCertValidDate InstReprCertValidDate ClientRiskRate InstReprManageRange
        ControlHolder ActualController MarriageStatus FamilyNum Penates MediaHobby InstitutionType EnglishFirstName
        EnglishFamliyName Vocation CorpoProperty StaffNum HobbyType Province City County CommendPerson CommendPersonType
        AcceptMethod FrozenCause FreezingDeadline OriginalSerialNo OriginalAppSheetNo Specification
    """,
    FileType.ACCOUNT_CONFIRMATIONS: """
        AppSheetSerialNo TransactionCfmDate ReturnCode TransactionAccountID DistributorCode BusinessCode TAAccountID
        MultiAcctFlag TASerialNO TransactionDate TransactionTime BranchCode FromTAFlag CertificateType CertificateNo
        InvestorName IndividualOrInstitution AccountAbbr AccountCardID RegionCode TargetTransactionAccountID NetNo
        Specification CustomerNo FrozenCause FreezingDeadline ErrorDetail
    """,
    FileType.TRADE_APPLICATIONS: """
        AppSheetSerialNo FundCode LargeRedemptionFlag TransactionDate TransactionTime TransactionAccountID
        DistributorCode ApplicationVol ApplicationAmount BusinessCode TAAccountID DiscountRateOfCommission DepositAcct
        RegionCode CurrencyType BranchCode OriginalAppSheetNo OriginalSubsDate IndividualOrInstitution ValidPeriod
        DaysRedemptionInAdvance RedemptionDateInAdvance OriginalSerialNo DateOfPeriodicSubs TASerialNO
        TermOfPeriodicSubs FutureBuyDate TargetDistributorCode Charge TargetBranchCode TargetTransactionAccountID
        TargetRegionCode DividendRatio Specification CodeOfTargetFund TotalBackendLoad ShareClass OriginalCfmDate
        DetailFlag OriginalAppDate DefDividendMethod FrozenCause FreezingDeadline VarietyCodeOfPeriodicSubs
        SerialNoOfPeriodicSubs RationType TargetTAAccountID TargetRegistrarCode NetNo CustomerNo TargetShareType
        RationProtocolNo BeginDateOfPeriodicSubs EndDateOfPeriodicSubs SendDayOfPeriodicSubs Broker SalesPromotion
        AcceptMethod ForceRedemptionType TakeIncomeFlag PurposeOfPeSubs FrequencyOfPeSubs PeriodSubTimeUnit
        BatchNumOfPeSubs CapitalMode DetailCapticalMode BackenloadDiscount CombineNum FutureSubscribeDate TradingMethod
        LargeBuyFlag ChargeType SpecifyRateFee SpecifyFee
    """,
    FileType.TRADE_CONFIRMATIONS: """
        AppSheetSerialNo TransactionCfmDate CurrencyType ConfirmedVol ConfirmedAmount FundCode LargeRedemptionFlag
        TransactionDate TransactionTime ReturnCode TransactionAccountID DistributorCode ApplicationVol ApplicationAmount
        BusinessCode TAAccountID TASerialNO BusinessFinishFlag DiscountRateOfCommission DepositAcct RegionCode
        DownLoaddate Charge AgencyFee NAV BranchCode OriginalAppSheetNo OriginalSubsDate OtherFee1
        IndividualOrInstitution RedemptionDateInAdvance StampDuty ValidPeriod RateFee TotalBackendLoad OriginalSerialNo
        Specification DateOfPeriodicSubs TargetDistributorCode TargetBranchCode TargetTransactionAccountID
        TargetRegionCode TransferDirection DefDividendMethod DividendRatio Interest VolumeByInterest InterestTax
        TradingPrice FreezingDeadline FrozenCause Tax TargetNAV TargetFundPrice CfmVolOfTargetFund MinFee OtherFee2
        OriginalAppDate TransferFee FromTAFlag ShareClass DetailFlag RedemptionInAdvanceFlag FrozenMethod
        OriginalCfmDate RedemptionReason CodeOfTargetFund TotalTransFee VarietyCodeOfPeriodicSubs SerialNoOfPeriodicSubs
        RationType TargetTAAccountID TargetRegistrarCode NetNo CustomerNo TargetShareType RationProtocolNo
        BeginDateOfPeriodicSubs EndDateOfPeriodicSubs SendDayOfPeriodicSubs Broker SalesPromotion AcceptMethod
        ForceRedemptionType AlternationDate TakeIncomeFlag PurposeOfPeSubs FrequencyOfPeSubs PeriodSubTimeUnit
        BatchNumOfPeSubs CapitalMode DetailCapticalMode BackenloadDiscount CombineNum RefundAmount SalePercent
        ManagerRealRatio ChangeFee RecuperateFee AchievementPay AchievementCompen SharesAdjustmentFlag GeneralTASerialNO
        UndistributeMonetaryIncome UndistributeMonetaryIncomeFlag BreachFee BreachFeeBackToFund PunishFee TradingMethod
        ChangeAgencyFee RecuperateAgencyFee ErrorDetail LargeBuyFlag RaiseInterest FeeCalculator ShareRegisterDate
    """,
    FileType.HOLDINGS: """
        AvailableVol TotalVolOfDistributorInTA TransactionCfmDate FundCode TransactionAccountID DistributorCode
        TAAccountID TotalFrozenVol BranchCode TASerialNO TotalBackendLoad ShareClass DetailFlag AccountStatus
        ShareRegisterDate UndistributeMonetaryIncome UndistributeMonetaryIncomeFlag GuaranteedAmount SourceType
        DefDividendMethod
    """,
}

_REQUIRED = {
    FileType.ACCOUNT_APPLICATIONS: """
        AppSheetSerialNo CertificateType CertificateNo InvestorName TransactionDate TransactionTime
        IndividualOrInstitution TransactionAccountID DistributorCode BusinessCode
    """,
    FileType.ACCOUNT_CONFIRMATIONS: """
        AppSheetSerialNo TransactionCfmDate ReturnCode TransactionAccountID DistributorCode BusinessCode TAAccountID
        TASerialNO
    """,
    FileType.TRADE_APPLICATIONS: """
        AppSheetSerialNo FundCode TransactionDate TransactionTime TransactionAccountID DistributorCode ApplicationVol
        ApplicationAmount BusinessCode TAAccountID
    """,
    FileType.TRADE_CONFIRMATIONS: """
        AppSheetSerialNo TransactionCfmDate ConfirmedVol ConfirmedAmount FundCode ReturnCode TransactionAccountID
        DistributorCode BusinessCode TAAccountID TASerialNO BusinessFinishFlag
    """,
    FileType.HOLDINGS: """
        AvailableVol TotalVolOfDistributorInTA TransactionCfmDate FundCode TransactionAccountID DistributorCode
        TAAccountID
    """,
}


def _fields() -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for entry in _FIELDS.split(";"):
        name, form = entry.split()
        width, _, decimals = form[1:].partition(".")
        fields[name] = Field(name, Kind(form[0]), int(width), int(decimals or 0))
    return fields


FIELDS = _fields()
"""Every known field by its name."""

LAYOUTS = {
    file_type: Layout(file_type, tuple(FIELDS[name] for name in names.split()), frozenset(_REQUIRED[file_type].split()))
    for file_type, names in _ORDER.items()
}
"""The whole layout of each type."""

for _layout in LAYOUTS.values():
    if not _layout.required <= _layout.places.keys() or len(_layout.places) != len(_layout.fields):
        raise InvariantError(f"the layout of type {_layout.file_type} contradicts itself")
