"""The wire contract: the object that each task takes, as a frozen pydantic model. Nothing here knows of a database.

Producers in Python import messages from this package; inside, each is imported from its own module.
"""

from models.messages.billing import (
    Adjustment,
    Credits,
    EraseUser,
    Purchase,
    Reversal,
    SavePlan,
    SaveRole,
    SaveUser,
    SetOwner,
    SignedCredits,
)
from models.messages.bulk import EmailRecipient, SendManyEmails, SendManySms, SmsRecipient
from models.messages.sends import SendEmail, SendSms
from models.messages.views import View, ViewMessage, ViewStatement, ViewUsage

__all__ = [
    "Adjustment",
    "Credits",
    "EmailRecipient",
    "EraseUser",
    "Purchase",
    "Reversal",
    "SavePlan",
    "SaveRole",
    "SaveUser",
    "SendEmail",
    "SendManyEmails",
    "SendManySms",
    "SendSms",
    "SetOwner",
    "SignedCredits",
    "SmsRecipient",
    "View",
    "ViewMessage",
    "ViewStatement",
    "ViewUsage",
]
