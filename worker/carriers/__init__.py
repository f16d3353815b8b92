"""Carriers: the only code that sends anything out. SMTP, an SMS gateway over HTTP, and one that accepts everything."""

from models.sends.carrier import Carrier
from worker.carriers.null import NullCarrier
from worker.carriers.sms_gateway import SmsGateway
from worker.carriers.smtp import SmtpCarrier
from worker.settings import SettingsError

ACCEPT_ALL = "null://"


def open_email(url: str, timeout_s: float, concurrency: int = 1) -> Carrier:
    """Return the carrier of emails that `url` names. Nothing is connected yet; `timeout_s` is for each step.

    `concurrency` is how many transactions there may be at a time for jobs that arrived together.

    Raises
    ------
    SettingsError
        If the address cannot be used.

    """
    try:
        return NullCarrier() if url.startswith(ACCEPT_ALL) else SmtpCarrier(url, timeout_s, concurrency=concurrency)
    except ValueError as error:
        msg = f"POSTAGE_SMTP_URL: {error}"
        raise SettingsError(msg) from None


def open_sms(url: str, timeout_s: float, concurrency: int = 1) -> Carrier:
    """Return the carrier of text messages that `url` names. Nothing is connected yet; `timeout_s` is for a request.

    `concurrency` is how many requests there may be at a time for jobs that arrived together.

    Raises
    ------
    SettingsError
        If the address cannot be used.

    """
    try:
        return NullCarrier() if url.startswith(ACCEPT_ALL) else SmsGateway(url, timeout_s, concurrency=concurrency)
    except ValueError as error:
        msg = f"POSTAGE_SMS_URL: {error}"
        raise SettingsError(msg) from None
