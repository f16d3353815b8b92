"""What Postage's own tasks take. No producer sends them, but anybody who reaches the broker could."""

from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from models.messages.base import TaskMessage
from models.messages.fields import MessageId

RESUMED_MAX = 1_000
"""Jobs that one resume message names, at most."""
INT32_MAX = 2**31 - 1
"""The largest value of the columns that these numbers are compared with."""


class OwnMessage(TaskMessage):
    """A message of Postage's own. Fields of a later release are ignored, for the time of an update."""

    model_config = ConfigDict(extra="ignore")


class ResumeJobs(OwnMessage):
    """Jobs of an organization that are to have their next attempt, with how many each has had.

    One without an organization is from a worker of an earlier release.
    """

    task: ClassVar[str] = "resume"

    org_id: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    attempts: dict[MessageId, Annotated[int, Field(ge=0, le=INT32_MAX)]] = Field(max_length=RESUMED_MAX)


class Upkeep(OwnMessage):
    """One round of something that beat asks for: an empty object."""

    task: ClassVar[str] = "upkeep"


OWN_MESSAGES: dict[str, type[OwnMessage]] = {
    "email.resume": ResumeJobs,
    "sms.resume": ResumeJobs,
    "upkeep.sweep": Upkeep,
    "upkeep.roll_up": Upkeep,
    "upkeep.audit": Upkeep,
}
"""Every task of Postage's own, and the message that it takes."""
