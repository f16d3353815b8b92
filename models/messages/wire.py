"""Every task of the wire contract, the message that each takes, and how an object off the wire becomes one."""

from pydantic import ValidationError

from models.errors import Reason, Refused
from models.messages.base import TaskMessage, explain
from models.messages.billing import (
    Adjustment,
    CancelMessages,
    EraseUser,
    Purchase,
    Reversal,
    SavePlan,
    SaveRole,
    SaveUser,
    SetOwner,
)
from models.messages.bulk import SendManyEmails, SendManySms
from models.messages.internal import OWN_MESSAGES
from models.messages.sends import Send, SendEmail, SendOne, SendSms
from models.messages.views import View, ViewChanges, ViewMessage, ViewStatement, ViewStory, ViewUsage

MESSAGES: dict[str, type[TaskMessage]] = {
    "email.send": SendEmail,
    "sms.send": SendSms,
    "email.send_many": SendManyEmails,
    "sms.send_many": SendManySms,
    "credits.purchase": Purchase,
    "credits.reverse": Reversal,
    "credits.adjust": Adjustment,
    "credits.set_owner": SetOwner,
    "users.save": SaveUser,
    "roles.save": SaveRole,
    "plans.save": SavePlan,
    "messages.cancel": CancelMessages,
    "users.erase": EraseUser,
    "views.overview": View,
    "views.usage": ViewUsage,
    "views.orders": View,
    "views.statement": ViewStatement,
    "views.billing": View,
    "views.users": View,
    "views.changes": ViewChanges,
    "views.message": ViewMessage,
    "views.explain": ViewStory,
}
"""Every task of the contract, and the message that it takes."""
SEND_TASKS = tuple(task for task, message in MESSAGES.items() if issubclass(message, Send))
"""The tasks that send."""
SEND_ONE_TASKS = tuple(task for task, message in MESSAGES.items() if issubclass(message, SendOne))
"""The tasks that send one message each."""
SAVE_TASKS = tuple(task for task in MESSAGES if task.endswith(".save"))
"""The tasks of which the last one counts."""


def parse(task: str, given: object, *, job_id: str | None = None) -> TaskMessage:
    """Return the message of `task` in the JSON object `given`. A send job without an id gets `job_id`.

    Raises
    ------
    Refused
        `invalid_job`, naming what is wrong field by field.

    """
    model = MESSAGES.get(task) or OWN_MESSAGES[task]
    if not isinstance(given, dict):
        sentence = f"{task} takes one JSON object as its only argument."
        raise Refused(Reason.INVALID_JOB, sentence)
    if given.get("job_id") is None and issubclass(model, Send):
        given = {**given, "job_id": job_id}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise Refused(Reason.INVALID_JOB, explain(error)) from None
    except RecursionError:
        raise Refused(Reason.INVALID_JOB, "The message is nested too deeply.") from None
