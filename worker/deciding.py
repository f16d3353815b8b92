"""Commands for what a person must decide: messages whose outcome is unknown, and jobs that are dead."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar, get_args

import click
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection

from models import charges as charging
from models import dead as letters
from models import unknown as deciding
from models.answers import message_answer
from models.charges import Charge
from models.fields import Instant
from models.unknown import Decision
from tasks.context import Context, Json
from worker import quarantine, screens
from worker.app import PostageApp
from worker.showing import as_json, migrated_app, show, the_app

F = TypeVar("F", bound=Callable[..., Any])

DECIDED_AT_ONCE = 100
"""Jobs that are settled in one transaction: charges to the same pool wait meanwhile."""
Kind = Literal["refused", "failed", "fault", "quarantined"]
PRIVATE = "What follows is what a producer sent, and may be private: text, addresses, billing information."
NOT_UNKNOWN = "It is not unknown, so there is nothing to decide."


def _database(ctx: click.Context) -> Context:
    return migrated_app(ctx).context


def _one_or_all(named: Sequence[str], *, everything: bool, what: str) -> None:
    if bool(named) == everything:
        raise click.UsageError(f"Name {what}, or say --all.")


# -- unknown ----------------------------------------------------------------------------------------------------------


@click.group()
def unknown() -> None:
    """Settle messages that the carrier may or may not have taken.

    They stay charged, and nothing is done with them, until a person decides. Search the carrier's log for the
    Message-ID: its part before the @ is the job id. If it was not taken, `refund` gives the credits back, and `resend`
    sends it again. Who decided is kept.
    """


@unknown.command("list")
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
@as_json
@click.pass_context
def list_unknown(ctx: click.Context, page: int, as_json: bool) -> None:  # noqa: FBT001
    """Messages whose outcome is unknown, oldest first."""
    rows, more = _database(ctx).database.look(lambda connection: deciding.listed(connection, page))
    show({"status": "done", "rows": rows, "page": page, "more": more}, as_json=as_json, screen=screens.unknown)


def _decision_options(command: F) -> F:
    for option in (
        click.option("--note", help="Why; kept with the decision."),
        click.option("--as", "operator", envvar="USER", required=True, help="Who decides. Default: $USER."),
        click.option("--all", "everything", is_flag=True, help="All that are unknown now."),
        click.argument("jobs", nargs=-1, metavar="[JOB]..."),
    ):
        command = option(command)
    return as_json(command)


@unknown.command()
@_decision_options
@click.pass_context
def refund(ctx: click.Context, /, **given: Any) -> None:  # noqa: ANN401
    """Give the credits of JOBs back to who paid: they end as failed.

    Recipients whom earlier attempts certainly reached stay charged.
    """
    _decide(ctx, "refund", **given)


@unknown.command()
@_decision_options
@click.pass_context
def resend(ctx: click.Context, /, **given: Any) -> None:  # noqa: ANN401
    """Send JOBs again, with the same Message-ID. Nothing more is charged; if they did arrive, they arrive twice."""
    _decide(ctx, "resend", **given)


def _decide(
    ctx: click.Context,
    decision: Decision,
    *,
    jobs: Sequence[str],
    everything: bool,
    operator: str,
    note: str | None,
    as_json: bool,
) -> None:
    _one_or_all(jobs, everything=everything, what="the jobs")
    who = {"operator": operator[:64], "note": note[:500] if note else None}
    context = _database(ctx)
    named = context.database.look(deciding.all_ids) if everything else list(dict.fromkeys(jobs))
    settled: list[Charge] = []
    for start in range(0, len(named), DECIDED_AT_ONCE):
        settled += _decided(context, decision, named[start : start + DECIDED_AT_ONCE], who)
    rest = [] if everything else _as_they_stand(context, set(named) - {charge.job_id for charge in settled})
    answer = {
        "status": "failed" if rest else "done",
        "decision": decision,
        "settled": [message_answer(charge) for charge in settled],
        "not_unknown": rest,
    }
    show(answer, as_json=as_json, screen=screens.decided)


def _decided(context: Context, decision: Decision, job_ids: Sequence[str], who: Json) -> list[Charge]:
    def work(connection: Connection) -> list[Charge]:
        if decision == "resend":
            return deciding.resend(connection, job_ids, now=context.now(), **who)
        return deciding.refund(connection, job_ids, now=context.now(), keep_dead=context.keeps_dead, **who)

    return context.database.transact(work)


def _as_they_stand(context: Context, job_ids: set[str]) -> list[Json]:
    found = context.database.look(lambda connection: charging.read(connection, job_ids))
    return [
        {"job_id": job_id, "status": _state(found.get(job_id)), "detail": NOT_UNKNOWN} for job_id in sorted(job_ids)
    ]


def _state(charge: Charge | None) -> str:
    return str(charge.state) if charge else "not_found"


# -- dead -------------------------------------------------------------------------------------------------------------


@click.group()
def dead() -> None:
    """List, show and replay jobs that were refused, failed, given up after faults, or quarantined.

    They are kept for POSTAGE_KEEP_DEAD_S; quarantined items are kept by the broker until they are replayed.
    """


def _since(_ctx: click.Context, _option: click.Parameter, text: str | None) -> datetime | None:
    try:
        return None if text is None else TypeAdapter[datetime](Instant).validate_python(text)
    except ValidationError:
        raise click.BadParameter("It must be like 2026-11-23 or 2026-11-23T10:00:00Z.") from None


def _choice(command: F) -> F:
    for option in (
        click.option("--since", callback=_since, help="Dead since this day or time (ISO 8601, UTC)."),
        click.option("--kind", type=click.Choice(get_args(Kind)), help="Only these."),
    ):
        command = option(command)
    return as_json(command)


@dead.command("list")
@_choice
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
@click.pass_context
def list_dead(ctx: click.Context, /, kind: Kind | None, since: datetime | None, page: int, as_json: bool) -> None:  # noqa: FBT001
    """Dead jobs, newest first, without what they say. Quarantined items have no time, so --since leaves them out."""
    rows: list[Json] = []
    more = False
    detail = None
    if kind != "quarantined":
        rows, more = _database(ctx).database.look(
            lambda connection: letters.listed(connection, status=kind, since=since, page=page)
        )
    if kind in (None, "quarantined") and since is None:
        try:
            items, more_items = _quarantined(the_app(ctx), page)
        except click.ClickException as error:
            if kind is not None:
                raise
            items, more_items, detail = [], False, f"Without what is in the quarantine. {error.message}"
        rows, more = rows + items, more or more_items
    answer = {"status": "done", "detail": detail, "rows": rows, "page": page, "more": more}
    show(answer, as_json=as_json, screen=screens.dead)


def _quarantined(app: PostageApp, page: int) -> tuple[list[Json], bool]:
    with quarantine.redis_of(app) as redis:
        items, more = quarantine.listed(redis, page)
    return [item.row() for item in items], more


@dead.command("show")
@click.argument("dead_id", metavar="ID")
@as_json
@click.pass_context
def show_dead(ctx: click.Context, dead_id: str, as_json: bool) -> None:  # noqa: FBT001
    """One dead job with all it says."""
    answer = _item(the_app(ctx), dead_id) if dead_id.startswith("q") else _letter(_database(ctx), dead_id)
    if answer is None:
        answer = {"status": "refused", "reason": "not_found", "detail": f"There is no dead job {dead_id}."}
    else:
        click.echo(PRIVATE, err=True)
    show(answer, as_json=as_json, screen=screens.dead_one)


def _letter(context: Context, dead_id: str) -> Json | None:
    found = _read(context, dead_id)
    return None if found is None else {"status": "done", **found.fields}


def _read(context: Context, dead_id: str) -> letters.Kept | None:
    if not (dead_id.isascii() and dead_id.isdigit() and len(dead_id) < len(str(2**63))):
        return None
    return context.database.look(lambda connection: letters.read(connection, int(dead_id)))


def _item(app: PostageApp, dead_id: str) -> Json | None:
    with quarantine.redis_of(app) as redis:
        item = quarantine.find(redis, dead_id)
    return (
        None if item is None else {"status": "done", **item.row(), "raw": item.raw.decode("utf-8", "backslashreplace")}
    )


@dead.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All that were not replayed yet; see --kind and --since.")
@_choice
@click.pass_context
def replay(  # noqa: PLR0917
    ctx: click.Context,
    /,
    ids: Sequence[str],
    everything: bool,  # noqa: FBT001
    kind: Kind | None,
    since: datetime | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Enqueue dead jobs again.

    A send job whose id is taken gets a new one made from it (a becomes a:r1), and is charged anew; everything else
    keeps its id. To run this twice is harmless: the same ids are enqueued, and an id is done once.
    """
    _one_or_all(ids, everything=everything, what="the dead jobs by their ids")
    if ids and (kind or since):
        raise click.UsageError("--kind and --since choose among all: leave the ids out, and say --all.")
    app = the_app(ctx)
    context = _database(ctx)
    outcomes: list[Json] = []
    if everything:
        outcomes += _replay_letters(context, kind, since)
        if kind in (None, "quarantined") and since is None:
            outcomes += _replay_quarantine(app)
    else:
        outcomes += [_replay_item(app, one) if one.startswith("q") else _replay_letter(context, one) for one in ids]
    failed = [one for one in outcomes if one["replayed_as"] is None]
    answer = {"status": "failed" if failed else "done", "rows": outcomes}
    show(answer, as_json=as_json, screen=screens.replayed)


def _replay_letters(context: Context, kind: Kind | None, since: datetime | None) -> list[Json]:
    if kind == "quarantined":
        return []
    waiting = context.database.look(lambda connection: letters.waiting(connection, status=kind, since=since))
    return [_replay_letter(context, str(letter_id)) for letter_id in waiting]


def _replay_letter(context: Context, dead_id: str) -> Json:
    letter = _read(context, dead_id)
    if letter is None:
        return _outcome(dead_id, None, None, f"There is no dead job {dead_id}.")
    key, job = letters.replay(letter)
    # First enqueued, then noted: who dies in between enqueues the same once more, which is harmless.
    with quarantine.asking_the_broker():
        context.enqueue(letter.fields["task"], job)
    context.database.transact(lambda connection: letters.mark_replayed(connection, letter, key, context.now()))
    return _outcome(dead_id, letter.fields["task"], key)


def _replay_quarantine(app: PostageApp) -> list[Json]:
    with quarantine.redis_of(app) as redis:
        return [_put_back(redis, item) for item in list(quarantine.everything(redis))]


def _replay_item(app: PostageApp, dead_id: str) -> Json:
    with quarantine.redis_of(app) as redis:
        item = quarantine.find(redis, dead_id)
        if item is None:
            return _outcome(dead_id, None, None, f"There is no item {dead_id} in the quarantine.")
        return _put_back(redis, item)


def _put_back(redis: Any, item: quarantine.Item) -> Json:  # noqa: ANN401  a Redis
    row = item.row()
    why_not = quarantine.put_back(redis, item)
    return _outcome(item.id, row["task"], None if why_not else row["queue"], why_not)


def _outcome(dead_id: str, task: str | None, replayed_as: str | None, detail: str | None = None) -> Json:
    return {"id": dead_id, "task": task, "replayed_as": replayed_as, "detail": detail}
