"""The wire contract: the object that each task takes, as a frozen pydantic model. Nothing here knows of a database.

Producers in Python import messages from this package; inside, each is imported from its own module.
"""

from models.messages.billing import Credits, EraseUser, Purchase, SavePlan, SaveRole, SaveUser, SetOwner
from models.messages.bulk import EmailRecipient, SendManyEmails, SendManySms, SmsRecipient
from models.messages.sends import SendEmail, SendSms
from models.messages.views import View, ViewMessage, ViewUsage

__all__ = [
    "Credits",
    "EmailRecipient",
    "EraseUser",
    "Purchase",
    "SavePlan",
    "SaveRole",
    "SaveUser",
    "SendEmail",
    "SendManyEmails",
    "SendManySms",
    "SendSms",
    "SetOwner",
    "SmsRecipient",
    "View",
    "ViewMessage",
    "ViewUsage",
]
