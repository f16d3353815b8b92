"""`views.explain`: the story of a send job, for whoever may read its answer, and for operators.

It is the answer, and what led to it: who asked, whose credits paid and why, each attempt, and how it ended.
"""

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import Connection, select

from models.database.schema import dead_letters
from models.errors import Reason, Refused
from models.messages.base import Json
from models.messages.views import ViewStory
from models.reports.message_view import answer_without_charge, no_message, visible_charge
from models.reports.story_attempts import attempt_events
from models.reports.story_credits import charged_event, find_paid, refunded_event
from models.reports.story_event import StoryEvent, StoryScope, counted
from models.sends.answers import answer_to
from models.sends.charges import Charge, State, bulk_message_id, bulk_payer, count_bulk_states, find_everywhere
from models.sends.dead_letters import replay_before
from models.sends.postponed import find_postponed
from models.text import without_people
from models.users.organizations import find_organization, organization_names
from models.users.users import get_user


def show_story(connection: Connection, view: ViewStory) -> Json:
    """Return the answer to a send job with its story, to those who may read the answer (`views.message`).

    Balances are shown to those only who spend from that pool now.

    Raises
    ------
    Refused
        As `views.message`.

    """
    charge = visible_charge(connection, view)
    if charge is not None:
        payer = charge.payer or bulk_payer(connection, charge.key)
        sees_pool = get_user(connection, view.viewer).owner == payer
        return _told(connection, charge, StoryScope(sees_pool=sees_pool, is_operator=False))
    story = _told_without_charge(connection, view.job_id, view.viewer)
    if story is None:
        raise no_message(view)
    return story


def show_story_to_operator(connection: Connection, job_id: str, organization: str | None = None) -> Json:
    """Return the same to an operator, for whom no rights are checked: of a job of any organization, or of that one.

    Raises
    ------
    Refused
        `not_found`, also if several organizations use the id and none is named.

    """
    charge = _find(connection, job_id, organization)
    if charge is not None:
        return _told(connection, charge, StoryScope(sees_pool=True, is_operator=True))
    story = None if organization else _told_without_charge(connection, job_id, None)
    if story is None:
        sentence = f"There is no job {job_id}{f' in {organization}' if organization else ''}."
        raise Refused(Reason.NOT_FOUND, sentence)
    return story


def _find(connection: Connection, job_id: str, organization: str | None) -> Charge | None:
    found = list(find_everywhere(connection, [job_id]).values())
    if organization is not None:
        org_id = find_organization(connection, organization)
        found = [charge for charge in found if charge.org_id == org_id]
    if len(found) <= 1:
        return found[0] if found else None
    names = organization_names(connection)
    using = " and ".join(sorted(names.get(charge.org_id, "somebody of no organization") for charge in found))
    raise Refused(Reason.NOT_FOUND, f"{using} use the id {job_id}: say --organization.")


def _told(connection: Connection, charge: Charge, scope: StoryScope) -> Json:
    paid = find_paid(connection, charge)
    is_bulk = charge.state is State.BULK
    events = [_asked(connection, charge)]
    if paid is not None:
        events.append(charged_event(connection, charge, paid, scope))
    events += _messages(connection, charge) if is_bulk else attempt_events(connection, charge)
    if paid is not None and paid.refunded:
        events.append(refunded_event(connection, charge, paid, scope))
    events += _letters(connection, charge.job_id, charge.sender, scope)
    return answer_to(connection, charge) | {"story": _in_order(events)}


def _told_without_charge(connection: Connection, job_id: str, person: str | None) -> Json | None:
    """Return the story of a job that is not due yet, or was refused and took no key."""
    answer = answer_without_charge(connection, job_id, person)
    if answer is None:
        return None
    scope = StoryScope(sees_pool=False, is_operator=person is None)
    postponed = find_postponed(connection, job_id, person)
    end = _refusal(answer) if postponed is None else _postponement(answer)
    asked_at = end.at if postponed is None else postponed.at
    fields = {"sender": answer["sender"], "task": answer["task"], "bulk": None, "replay_of": None}
    text = f"{answer['sender'] or 'Somebody'} asked for it ({answer['task']})."
    asked = StoryEvent(kind="asked", at=asked_at, text=text, fields=fields)
    letters = _letters(connection, job_id, answer["sender"], scope)
    return answer | {"story": _in_order([asked, end, *letters])}


def _refusal(answer: Json) -> StoryEvent:
    text = f"It was refused ({answer['reason']}): {without_people(answer['detail'])}"
    fields = {"status": answer["status"], "reason": answer["reason"]}
    return StoryEvent(kind="refused", at=datetime.fromisoformat(answer["final_at"]), text=text, fields=fields)


def _postponement(answer: Json) -> StoryEvent:
    fields = {"until": answer["next_attempt_at"]}
    return StoryEvent(kind="postponed", at=None, text=answer["detail"], fields=fields)


def _in_order(events: list[StoryEvent]) -> list[Json]:
    """Return events by their times, those of one moment as they follow from each other, and how things stand last."""
    happened = sorted((event.at, place) for place, event in enumerate(events) if event.at is not None)
    stands = [event for event in events if event.at is None]
    return [event.as_json() for event in [*(events[place] for _, place in happened), *stands]]


def _asked(connection: Connection, charge: Charge) -> StoryEvent:
    replay_of = _replayed(connection, charge)
    text = f"{charge.sender} asked for it ({charge.task})"
    text += f", in the bulk job {charge.bulk_id}" if charge.bulk_id else ""
    text += f", as a replay of {replay_of}" if replay_of else ""
    fields = {"sender": charge.sender, "task": charge.task, "bulk": charge.bulk_id, "replay_of": replay_of}
    return StoryEvent(kind="asked", at=charge.created_at, text=f"{text}.", fields=fields)


def _messages(connection: Connection, charge: Charge) -> Iterator[StoryEvent]:
    """Yield how the messages of a bulk job stand, and how to look at one of them."""
    counts = {str(state): count for state, count in sorted(count_bulk_states(connection, charge.key).items())}
    first = bulk_message_id(charge.job_id, 0)
    words = ", ".join(f"{count} {state}" for state, count in counts.items())
    text = f"{counted(sum(counts.values()), 'message')}: {words}. Each has a story of its own, from {first} on."
    yield StoryEvent(kind="messages", at=None, text=text, fields={"messages": counts, "first": first})


# -- dead letters -----------------------------------------------------------------------------------------------------


def _letters(connection: Connection, job_id: str, sender: str | None, scope: StoryScope) -> Iterator[StoryEvent]:
    """Yield that a job is kept to be replayed, and whether it was, as long as that is known."""
    letters = select(dead_letters).where(dead_letters.c.key == job_id, dead_letters.c.person == sender)
    for letter in connection.execute(letters.order_by(dead_letters.c.id)):
        number = str(letter.id) if scope.is_operator else None
        text = f"It is kept as a dead letter{f', {number}' if number else ''}."
        yield StoryEvent(kind="dead_letter", at=letter.at, text=text, fields={"letter": number})
        if letter.replayed_as is not None:
            text = f"It was enqueued again, as {letter.replayed_as}."
            fields = {"replayed_as": letter.replayed_as}
            yield StoryEvent(kind="replayed", at=letter.replayed_at, text=text, fields=fields)


def _replayed(connection: Connection, charge: Charge) -> str | None:
    """Return the job of which this is a replay, as long as its letter is kept."""
    before = replay_before(charge.job_id)
    if before is None:
        return None
    its_letter = (dead_letters.c.key == before) & (dead_letters.c.person == charge.sender)
    query = select(dead_letters.c.key).where(its_letter, dead_letters.c.replayed_as == charge.job_id)
    return connection.execute(query.limit(1)).scalar()
