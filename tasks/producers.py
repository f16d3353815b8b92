"""Producers whose key is bound to an organization: they may ask in the name of its people only."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from models.errors import Reason, Refused
from models.messages.base import Json
from models.users.users import organizations_of
from tasks.job_ids import people_in


class BoundJob(NamedTuple):
    """A job, and the only organization for which its producer may ask."""

    organization: str
    given: Json


def refusals_of_strangers(connection: Connection, jobs: Sequence[BoundJob]) -> list[Refused | None]:
    """Return for each valid job why its producer may not ask for it, or None if it may."""
    people = {person for job in jobs for person in people_in(job.given)}
    organizations = organizations_of(connection, people)
    return [_refusal(job, organizations) for job in jobs]


def _refusal(job: BoundJob, organizations: dict[str, str]) -> Refused | None:
    people, named = people_in(job.given), job.given.get("organization")
    if not people and named is None:
        return _not_permitted(f"The producer's key is for {job.organization}: the job must name one of its people.")
    if named not in (None, job.organization):
        return _not_permitted(f"The producer's key is for the organization {job.organization} only.")
    for person in people:
        if organizations.get(person) != job.organization:  # the same words whether others have them, or nobody
            return _not_permitted(f"The producer's key is for the organization {job.organization}, and {person} is "
                                  "nobody there.")  # fmt: skip
    return None


def _not_permitted(sentence: str) -> Refused:
    return Refused(Reason.NOT_PERMITTED, sentence)
