"""Which carriers there are, and those that the settings name: docs/carriers.md says how to add one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from models.messages.fields import Kind
from models.sends.carrier import Carrier
from models.sends.routes import Route
from worker.carrier_urls import CarrierUrl
from worker.carriers.null import NullCarrier
from worker.carriers.sms_gateway import SmsGateway
from worker.carriers.smtp import SmtpCarrier
from worker.settings import Settings, SettingsError, carrier_setting

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


def open_routes(settings: Settings) -> dict[Kind, tuple[Route, ...]]:
    """Return the carriers that the settings name, and when each is used.

    Raises
    ------
    SettingsError
        If one of the addresses cannot be used, with a sentence that never repeats the user or the password.

    """
    return {kind: _routes(kind, addresses, settings) for kind, addresses in settings.carriers.items()}


def _routes(kind: Kind, addresses: Sequence[CarrierUrl], settings: Settings) -> tuple[Route, ...]:
    try:
        return tuple(_route(kind, address, settings) for address in addresses)
    except ValueError as error:
        msg = f"{carrier_setting(kind)}: {error}"
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
