"""The message of a charge, as its carrier gets it."""

from models.messages.base import Json
from models.sends.carrier import Email, OutboundMessage, Sms
from models.sends.charges import Charge


def outbound_message(charge: Charge) -> OutboundMessage:
    """Return the message of a charge as its carrier gets it."""
    content: Json = charge.content or {}
    org_id = None if charge.is_of_earlier_release else charge.org_id
    if charge.kind == "sms":
        return Sms(
            job_id=charge.job_id,
            org_id=org_id,
            to=content["to"],
            sender_id=content.get("from"),
            text=content["text"],
            segments=content["segments"],
        )
    reply_to = content.get("reply_to") or ()
    return Email(
        job_id=charge.job_id,
        org_id=org_id,
        from_name=charge.sender_name or "",
        from_address=charge.sender_address or "",
        to=tuple(content["to"]),
        cc=tuple(content.get("cc", ())),
        recipients=tuple(content["recipients"]),
        subject=content["subject"],
        text=content.get("text"),
        html=content.get("html"),
        reply_to=(reply_to,) if isinstance(reply_to, str) else tuple(reply_to),
        headers=content.get("headers", {}),
    )
