"""What goes into a history: people, jobs of either kind, and what the carriers are going to answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from models.messages.bulk import SendMany, SendManySms
from models.messages.fields import KINDS, Kind
from models.messages.sends import SendEmail, SendOne, SendSms
from models.sends.carrier import OutboundMessage, Outcome, Receipt, Sms
from tests.factories import content_of
from tests.properties.model import Message

PEOPLE = ["ann", "ben", "cas", "dee", "eve"]


@dataclass(frozen=True)
class CarrierAnswer:
    """What a carrier answers to one attempt; of an email's recipients also the places of refused and deferred ones."""

    outcome: Outcome = Outcome.ACCEPTED
    refused: frozenset[int] = frozenset()
    deferred: frozenset[int] = frozenset()

    def receipt(self, kind: Kind, recipients: Sequence[str]) -> Receipt:
        """The receipt for these recipients. As with a mail server, it is accepted only if one of them was."""
        if kind == "sms":
            return Receipt(self.outcome, "So.")
        refused = {address: "No." for place, address in enumerate(recipients) if place in self.refused}
        deferred = {
            address: "Later." for place, address in enumerate(recipients) if place in self.deferred - self.refused
        }
        if len(refused) == len(recipients):
            return Receipt(Outcome.NEVER, "To nobody.", refused=refused, recipients_refused=True)
        if self.outcome is Outcome.ACCEPTED and len(refused) + len(deferred) == len(recipients):
            return Receipt(Outcome.NOT_NOW, "To nobody now.", refused=refused, deferred=deferred)
        return Receipt(self.outcome, "So.", refused=refused, deferred=deferred)

    def give(self, message: OutboundMessage) -> Receipt:
        """Answer."""
        return self.receipt("sms" if isinstance(message, Sms) else "email", recipients_of(message))


def recipients_of(message: OutboundMessage) -> list[str]:
    """The recipients to whom a carrier hands a message over."""
    return [message.to] if isinstance(message, Sms) else list(message.recipients)


people = st.sampled_from([*PEOPLE[:4] * 2, *PEOPLE, "zoe"])
"""The first four are there from the start; zoe is never saved."""
kinds = st.sampled_from(KINDS)
sizes = st.sampled_from([2, 3, 1])
"""How many recipients an email has, or how many segments a text message."""
drafts = st.lists(st.tuples(people, sizes), min_size=1, max_size=3)
"""Jobs that come in at the same time: the sender and size of each."""
_places = st.frozensets(st.integers(0, 2), max_size=2)
_outcomes = st.sampled_from([Outcome.ACCEPTED, Outcome.NOT_NOW, Outcome.UNSURE, Outcome.NEVER, Outcome.ACCEPTED])
carrier_answers = st.builds(CarrierAnswer, _outcomes, _places, _places)


def text_of(segments: int) -> str:
    """The text of a text message of so many segments."""
    return "a" * (160 if segments == 1 else 153 * segments)


def send_job(job_id: str, kind: Kind, sender: str, size: int) -> SendOne:
    """An email to so many recipients, or a text message of so many segments."""
    if kind == "sms":
        return SendSms(job_id=job_id, sender=sender, to="+31612345678", text=text_of(size))
    to = [f"reader-{place}@example.org" for place in range(size)]
    return SendEmail(job_id=job_id, sender=sender, to=to, subject="News", text="There is none.")


def in_model(job: SendOne, job_id: str | None = None) -> Message:
    """The job as the model keeps it."""
    content = content_of(job)
    cost = {job.to: content.cost} if isinstance(job, SendSms) else dict.fromkeys(content.fields["recipients"], 1)
    return Message(job_id or job.job_id or "", job.kind, job.sender, cost)


def kind_of(bulk_job: SendMany) -> Kind:
    """The kind of the messages of a bulk job."""
    return "sms" if isinstance(bulk_job, SendManySms) else "email"
