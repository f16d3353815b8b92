"""Which carriers there are, and those that the settings name: docs/carriers.md says how to add one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from models.messages.fields import Kind
from models.sends.carrier import Carrier
from models.sends.routes import Route
from worker.carrier_urls import CarrierUrl, parse_carrier_urls
from worker.carriers.null import NullCarrier
from worker.carriers.sms_gateway import SmsGateway
from worker.carriers.smtp import SmtpCarrier
from worker.settings import Settings, SettingsError

Open = Callable[[CarrierUrl, Settings], Carrier]
"""Makes the carrier of a URL. Nothing is connected yet."""


def _smtp(address: CarrierUrl, settings: Settings) -> Carrier:
    return SmtpCarrier(address, timeout_s=settings.smtp_timeout_s, dot_timeout_s=settings.smtp_dot_timeout_s)


def _sms_gateway(address: CarrierUrl, settings: Settings) -> Carrier:
    return SmsGateway(address, timeout_s=settings.sms_timeout_s)


def _null(address: CarrierUrl, settings: Settings) -> Carrier:  # noqa: ARG001  it needs neither
    return NullCarrier()


CARRIERS: Final[Mapping[Kind, Mapping[str, Open]]] = {
    "email": {"smtp": _smtp, "smtps": _smtp, "null": _null},
    "sms": {"http": _sms_gateway, "https": _sms_gateway, "null": _null},
}
"""How the carriers of each kind are made, by the scheme of their URL."""


@dataclass(frozen=True, slots=True)
class _Setting:
    name: str
    urls: str


def open_routes(settings: Settings) -> dict[Kind, tuple[Route, ...]]:
    """Return the carriers that the settings name, and when each is used.

    Raises
    ------
    SettingsError
        If one of the addresses cannot be used, with a sentence that never repeats the user or the password.

    """
    named: dict[Kind, _Setting] = {
        "email": _Setting("POSTAGE_SMTP_URL", settings.smtp_url),
        "sms": _Setting("POSTAGE_SMS_URL", settings.sms_url),
    }
    return {kind: _routes(kind, setting, settings) for kind, setting in named.items()}


def _routes(kind: Kind, setting: _Setting, settings: Settings) -> tuple[Route, ...]:
    try:
        addresses = parse_carrier_urls(setting.urls, settings.connections)
        return tuple(_route(kind, address, settings) for address in addresses)
    except ValueError as error:
        msg = f"{setting.name}: {error}"
        raise SettingsError(msg) from None


def _route(kind: Kind, address: CarrierUrl, settings: Settings) -> Route:
    return Route(
        name=address.name,
        carrier=CARRIERS[kind][address.scheme](address, settings),
        priority=address.priority,
        weight=address.weight,
        prefixes=address.prefixes,
        rate=address.rate,
        slow_after=address.slow,
    )
