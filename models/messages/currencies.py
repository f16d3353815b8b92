"""The currencies that exist: ISO 4217, table A.1, without funds, metals and test codes, as of 1 January 2026."""

CURRENCIES = frozenset(
    """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLP
    CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG
    HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL
    MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR
    RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD
    TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
    """.split()  # noqa: SIM905  a list of them would take a line each
)
"""A list changes about once a year, so it stands here instead of in a package of twenty megabytes."""


def check_currency(code: str) -> str:
    """Return a code, if it is that of a currency.

    Raises
    ------
    ValueError
        If it is not.

    """
    if code not in CURRENCIES:
        msg = "must be a currency of ISO 4217, such as EUR"
        raise ValueError(msg)
    return code


_MINOR_DIGITS = {
    **dict.fromkeys("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF".split(), 0),  # noqa: SIM905  as above
    **dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3),  # noqa: SIM905  as above
}


def minor_digits(code: str) -> int:
    """Return how many decimals an amount of a currency has (ISO 4217, table A.1, "minor unit")."""
    return _MINOR_DIGITS.get(code, 2)
