"""How a carrier is named in the settings: one URL each, whose query has what all carriers have in common.

    smtp://user:password@mail.example:587?name=main&priority=1&weight=3&rate=50&connections=20
    https://sms.example/send?name=nordic&prefixes=46,47,45&window=24h

What is left of the query is the carrier's own (`CarrierUrl.options`). Several carriers are written one after another,
with blanks between them.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from models.messages.fields import Kind

SCHEMES: Final[Mapping[Kind, Sequence[str]]] = {
    "email": ("smtp", "smtps", "null"),
    "sms": ("http", "https", "null"),
}
"""The carriers of each kind, by the scheme of their URL; `worker.carriers.routes.CARRIERS` makes them."""
CONNECTIONS: Final = 20
"""Connections of a worker process to a carrier, unless its URL or the settings say otherwise."""
CONNECTIONS_MAX: Final = 1_000
NAME_MAX: Final = 40
COMMON: Final = ("name", "priority", "weight", "rate", "connections", "window", "prefixes", "slow")
"""The options that all carriers have."""
RATE_MAX: Final = 100_000
_NAME = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{NAME_MAX - 1}}}")
_DURATION = re.compile(r"(\d{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_PREFIX = re.compile(r"\+?(\d{1,15})")


class CarrierUrlError(ValueError):
    """The URL of a carrier cannot be used. The sentence never repeats the user or the password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CarrierUrl:
    """Where a carrier is, and when it is used.

    Carriers of the lowest `priority` are used first; among equal ones, messages are shared by `weight`. `rate` is
    messages (texts: segments) a second, over all workers. `connections` are those of one worker process. `window` is
    how long the carrier knows a message again. `prefixes` are the beginnings of the numbers it is for, without `+`.
    What takes longer than `slow` counts against the carrier.
    """

    scheme: str
    host: str
    port: int | None = None
    user: str | None = None
    password: str = field(default="", repr=False)
    path: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    name: str
    priority: int = 1
    weight: int = 1
    rate: float | None = None
    connections: int = CONNECTIONS
    window: timedelta | None = None
    prefixes: tuple[str, ...] = ()
    slow: timedelta | None = None

    @property
    def address(self) -> str:
        """Scheme, host and port, for people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" if self.port is None else f"{self.scheme}://{host}:{self.port}"

    @property
    def sends(self) -> bool:
        """Whether it sends anything."""
        return self.scheme != "null"

    @property
    def is_loopback(self) -> bool:
        """Whether the carrier is on this machine, so that nobody can listen on the way."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_carrier_url(url: str, connections: int = CONNECTIONS) -> CarrierUrl:
    """Return what a URL says; `connections` is for one that does not say how many.

    Raises
    ------
    CarrierUrlError
        If it cannot be read, or an option that all carriers have is wrong.

    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        named = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        options = dict(named)
        host.encode("idna")
    except ValueError:  # its own words might repeat a part of the password
        msg = f"The address of a carrier cannot be read; it is written {_scheme(url)}://[user:pass@]host[:port]."
        raise CarrierUrlError(msg) from None
    _require(len(options) == len(named), "has an option or a parameter twice")
    _require(not parts.fragment, "has a #: write %23 for it")
    _require(host or parts.scheme == "null", "names no host")
    common = {name: options.pop(name, None) for name in COMMON}
    return CarrierUrl(
        scheme=parts.scheme,
        host=host,
        port=port,
        user=None if parts.username is None else unquote(parts.username),
        password=unquote(parts.password or ""),
        path=parts.path,
        options=options,
        name=_name(common["name"], host or parts.scheme),
        priority=_whole("priority", common["priority"], 1, 100, otherwise=1),
        weight=_whole("weight", common["weight"], 1, 1000, otherwise=1),
        rate=_rate(common["rate"]),
        connections=_whole("connections", common["connections"], 1, CONNECTIONS_MAX, otherwise=connections),
        window=_duration("window", common["window"]),
        prefixes=_prefixes(common["prefixes"]),
        slow=_duration("slow", common["slow"]),
    )


def check_carrier_urls(kind: Kind, urls: str) -> None:
    """Make sure that each of some URLs names a carrier of a kind.

    Raises
    ------
    CarrierUrlError
        If one does not.

    """
    if not urls.strip():
        msg = "It names no carrier; null:// is one that accepts everything and sends nothing."
        raise CarrierUrlError(msg)
    for one in parse_carrier_urls(urls):
        if one.scheme not in SCHEMES[kind]:
            *others, last = (f"{scheme}://…" for scheme in SCHEMES[kind])
            msg = f"A carrier of {kind} is {', '.join(others)} or {last}."
            raise CarrierUrlError(msg)


def parse_carrier_urls(urls: str, connections: int = CONNECTIONS) -> list[CarrierUrl]:
    """Return what several URLs say, which have blanks between them.

    Raises
    ------
    CarrierUrlError
        If one of them cannot be used, or two carriers have the same name.

    """
    parsed = [parse_carrier_url(url, connections) for url in urls.split()]
    names = [one.name for one in parsed]
    for name in names:
        _require(names.count(name) == 1, f"has the name {name}, as another carrier: give each its own with ?name=…")
    return parsed


def _scheme(url: str) -> str:
    scheme = url.partition("://")[0]
    return scheme if scheme.isalpha() and scheme.isascii() else "smtp"


def _require(condition: object, otherwise: str) -> None:
    if not condition:
        msg = f"The address of a carrier {otherwise}."
        raise CarrierUrlError(msg)


def _name(given: str | None, otherwise: str) -> str:
    if given is None:
        return re.sub(r"[^a-z0-9._-]", "-", otherwise.lower())[:NAME_MAX].lstrip("._-") or "carrier"
    _require(_NAME.fullmatch(given), f"has a name that is not 1 to {NAME_MAX} small letters, digits, dots or dashes")
    return given


def is_whole(text: str, least: int, most: int) -> bool:
    """Whether a text is a whole number between two others, in digits."""
    return text.isascii() and text.isdigit() and len(text) <= len(str(most)) and least <= int(text) <= most


def _whole(name: str, given: str | None, least: int, most: int, *, otherwise: int) -> int:
    if given is None:
        return otherwise
    _require(is_whole(given, least, most), f"has {name}={given[:20]}; it is a number from {least} to {most}")
    return int(given)


def _rate(given: str | None) -> float | None:
    if given is None:
        return None
    _require(re.fullmatch(r"\d{1,6}(\.\d{1,6})?", given) and 0 < float(given) <= RATE_MAX,
             f"has rate={given[:20]}; it is a number of messages a second, above 0 and up to {RATE_MAX}")  # fmt: skip
    return float(given)


def _duration(name: str, given: str | None) -> timedelta | None:
    if given is None:
        return None
    found = _DURATION.fullmatch(given)
    _require(found, f"has {name}={given[:20]}; it is a number of seconds, minutes, hours or days, as in 24h")
    return timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else None


def _prefixes(given: str | None) -> tuple[str, ...]:
    if given is None:
        return ()
    found = [_PREFIX.fullmatch(each.strip()) for each in given.split(",")]
    _require(all(found), "has prefixes that are not the first digits of numbers, with commas between them")
    return tuple(each[1] for each in found if each)
