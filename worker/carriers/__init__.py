"""The only code that leaves the house: SMTP, the SMS gateway, and a carrier that accepts all."""

from models.carriers import Carrier
from worker.carriers.null import NullCarrier
from worker.carriers.sms import SmsGateway
from worker.carriers.smtp import SmtpCarrier
from worker.settings import SettingsError

ACCEPT_ALL = "null://"


def open_email(url: str, timeout_s: float, at_once: int = 1) -> Carrier:
    """Make the carrier of emails that `url` names. Nothing is connected yet; `timeout_s` is for each step.

    `at_once` is how many conversations there are at a time for jobs that came together.

    Raises
    ------
    SettingsError
        If the address cannot be used.

    """
    try:
        return NullCarrier() if url.startswith(ACCEPT_ALL) else SmtpCarrier(url, timeout_s, at_once=at_once)
    except ValueError as error:
        msg = f"POSTAGE_SMTP_URL: {error}"
        raise SettingsError(msg) from None


def open_sms(url: str, timeout_s: float, at_once: int = 1) -> Carrier:
    """Make the carrier of text messages that `url` names. Nothing is connected yet; `timeout_s` is for a request.

    `at_once` is how many requests there are at a time for jobs that came together.

    Raises
    ------
    SettingsError
        If the address cannot be used.

    """
    try:
        return NullCarrier() if url.startswith(ACCEPT_ALL) else SmsGateway(url, timeout_s, at_once=at_once)
    except ValueError as error:
        msg = f"POSTAGE_SMS_URL: {error}"
        raise SettingsError(msg) from None
