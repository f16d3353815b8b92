"""Commands that list, show and replay dead jobs: dead letters in the database, and the quarantine in the broker."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal, TypeVar, get_args

import click
from pydantic import TypeAdapter, ValidationError
from redis import Redis

from models.database.paging import refused_cursor
from models.messages.answer import refused_answer
from models.messages.base import Json
from models.messages.fields import Instant
from models.sends.dead_letters import Status, find_letter, list_letters
from tasks.context import Context
from tasks.operating import replay_letter, replay_letters, replay_result
from worker.app import PostageApp
from worker.broker import quarantine
from worker.broker.quarantine import QuarantinedItem
from worker.broker.transport import redis_client
from worker.cli import tables
from worker.cli.output import broker_errors, csv_option, json_option, list_answer, next_option, print_answer
from worker.cli.session import Need, current_session, needs

F = TypeVar("F", bound=Callable[..., Any])

DeadKind = Literal["refused", "failed", "fault", "quarantined"]
PRIVATE = "What follows is what a producer sent, and may be private: text, addresses, billing information."


@click.group()
def dead() -> None:
    """List, show and replay dead jobs.

    Those are jobs that were refused, failed, or given up after faults, which are kept for POSTAGE_KEEP_DEAD_S, and
    quarantined items, which the broker keeps for POSTAGE_KEEP_PERSONAL_S.
    """


def _parse_since(_ctx: click.Context, _option: click.Parameter, text: str | None) -> datetime | None:
    try:
        return None if text is None else TypeAdapter[datetime](Instant).validate_python(text)
    except ValidationError:
        raise click.BadParameter("It must be like 2026-11-23 or 2026-11-23T10:00:00Z.") from None


def _filter_options(command: F) -> F:
    for option in (
        click.option("--since", callback=_parse_since, help="Dead since this day or time (ISO 8601, UTC)."),
        click.option("--kind", type=click.Choice(get_args(DeadKind)), help="Only these."),
    ):
        command = option(command)
    return json_option(command)


@dead.command("list")
@csv_option
@_filter_options
@next_option
@needs(Need.BROKER | Need.DATABASE)
def list_dead(*, kind: DeadKind | None, since: datetime | None, cursor: str | None, as_json: bool) -> None:
    """List dead jobs, newest first, without their contents. Quarantined items come last, by their ids."""
    status: Status | None = None if kind == "quarantined" else kind
    with_letters, with_items = kind != "quarantined", kind in (None, "quarantined")
    after_item = cursor if cursor and _is_item(cursor) else None
    answer: Json = {"status": "done", "detail": None, "rows": [], "more": False, "next": None}
    if cursor and not (with_items if after_item else with_letters):
        why = refused_cursor()
        answer = refused_answer(why.reason, why.detail)
    elif with_letters and after_item is None:
        answer |= list_answer(lambda connection: list_letters(connection, status=status, since=since, cursor=cursor))
    if with_items and answer["status"] == "done" and not answer["more"]:
        _add_items(answer, after_item, since, needed=not with_letters)
    print_answer(answer, as_json=as_json, table=tables.dead)


def _add_items(answer: Json, after: str | None, since: datetime | None, *, needed: bool) -> None:
    """Add a page of quarantined items to the end of all letters, or say why not; if they are `needed`, raise it."""
    try:
        items, following = _list_items(current_session().app, after, since)
    except click.ClickException as error:
        if needed:
            raise
        answer["detail"] = f"Without what is in the quarantine. {error.message}"
    else:
        answer |= {"rows": answer["rows"] + items, "more": following is not None, "next": following}


@dead.command("show")
@click.argument("dead_id", metavar="ID")
@json_option
@needs(Need.BROKER | Need.DATABASE)
def show_dead(*, dead_id: str, as_json: bool) -> None:
    """Show one dead job with its contents."""
    session = current_session()
    answer = _show_item(session.app, dead_id) if _is_item(dead_id) else _show_letter(session.context, dead_id)
    if answer is None:
        answer = {"status": "refused", "reason": "not_found", "detail": f"There is no dead job {dead_id}."}
    else:
        click.echo(PRIVATE, err=True)
    print_answer(answer, as_json=as_json, table=tables.dead_job)


@dead.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All that were not replayed yet; see --kind and --since.")
@_filter_options
@needs(Need.BROKER | Need.DATABASE)
def replay(
    *, ids: Sequence[str], everything: bool, kind: DeadKind | None, since: datetime | None, as_json: bool
) -> None:
    """Enqueue dead jobs again.

    A send job whose id is taken gets a new one made from it (a becomes a:r1), and is charged anew; everything else
    keeps its id. To run this twice is harmless: the same ids are enqueued, and an id is done once.
    """
    if bool(ids) == everything:
        raise click.UsageError("Name the dead jobs by their ids, or say --all.")
    if ids and (kind or since):
        raise click.UsageError("--kind and --since choose among all: leave the ids out, and say --all.")
    session = current_session()
    with broker_errors():
        results = (
            _replay_all(session.app, kind, since) if everything else [_replay_one(session.app, each) for each in ids]
        )
    failed = any(result["replayed_as"] is None for result in results)
    print_answer({"status": "failed" if failed else "done", "rows": results}, as_json=as_json, table=tables.replayed)


# -- dead letters -----------------------------------------------------------------------------------------------------


def _letter_id(dead_id: str) -> int | None:
    is_number = dead_id.isascii() and dead_id.isdigit() and len(dead_id) < len(str(2**63))
    return int(dead_id) if is_number else None


def _show_letter(context: Context, dead_id: str) -> Json | None:
    letter_id = _letter_id(dead_id)
    if letter_id is None:
        return None
    letter = context.database.read(lambda connection: find_letter(connection, letter_id))
    return None if letter is None else {"status": "done", **letter.fields}


def _replay_all(app: PostageApp, kind: DeadKind | None, since: datetime | None) -> list[Json]:
    results = [] if kind == "quarantined" else replay_letters(app.context, kind, since)
    if kind in (None, "quarantined"):
        with _redis_of(app) as redis:
            results += [_put_back(redis, item) for item in list(quarantine.all_items(redis, since))]
    return results


def _replay_one(app: PostageApp, dead_id: str) -> Json:
    if _is_item(dead_id):
        return _replay_item(app, dead_id)
    letter_id = _letter_id(dead_id)
    if letter_id is None:
        return replay_result(dead_id, why_not=f"There is no dead job {dead_id}.")
    return replay_letter(app.context, letter_id)


# -- the quarantine ---------------------------------------------------------------------------------------------------


def _is_item(dead_id: str) -> bool:
    return re.fullmatch("q[0-9a-f]{16}", dead_id) is not None


@contextmanager
def _redis_of(app: PostageApp) -> Iterator[Redis]:
    with broker_errors(), app.connection_for_read() as connection:
        yield redis_client(connection.default_channel)


def _list_items(app: PostageApp, after: str | None, since: datetime | None) -> tuple[list[Json], str | None]:
    with _redis_of(app) as redis:
        items, following = quarantine.list_items(redis, after, since)
    return [item.row() for item in items], following


def _show_item(app: PostageApp, item_id: str) -> Json | None:
    with _redis_of(app) as redis:
        item = quarantine.find_item(redis, item_id)
    if item is None:
        return None
    return {"status": "done", **item.row(), "raw": item.raw.decode("utf-8", "backslashreplace")}


def _replay_item(app: PostageApp, item_id: str) -> Json:
    with _redis_of(app) as redis:
        item = quarantine.find_item(redis, item_id)
        if item is None:
            return replay_result(item_id, why_not=f"There is no item {item_id} in the quarantine.")
        return _put_back(redis, item)


def _put_back(redis: Redis, item: QuarantinedItem) -> Json:
    row = item.row()
    why_not = quarantine.put_back(redis, item)
    return replay_result(item.id, task=row["task"], replayed_as=None if why_not else row["queue"], why_not=why_not)
