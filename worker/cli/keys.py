"""Commands for the keys of producers: `postage keys new`, `list` and `revoke`."""

from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from models.database.engine import utc_now
from models.errors import Reason
from models.messages.answer import iso_time, refused_answer
from models.messages.base import Json
from models.messages.fields import is_id
from models.messages.wire import MESSAGES
from worker.cli.output import json_option, print_answer, table_options
from worker.cli.session import current_session
from worker.cli.tables import moment, table
from worker.producer_keys import OURS, KnownKey, changed_keys, new_secret, read_keys


@click.group()
def keys() -> None:
    """Make, list and revoke the keys with which producers sign their messages.

    They are in the file POSTAGE_PRODUCER_KEYS, which workers read again when it changes. POSTAGE_SIGNED_QUEUES says on
    which queues messages must be signed; docs/producers.md says how.
    """


@keys.command()
@click.argument("key_id", metavar="NAME")
@click.option("--organization", help="The organization for whose people the producer may ask. Default: all.")
@click.option("--task", "tasks", multiple=True, metavar="TASK", type=click.Choice(list(MESSAGES)),
              help="A task it may ask for; repeat. Default: all.")  # fmt: skip
@click.option("--sender", "senders", multiple=True, metavar="USER",
              help="A user as whom it may ask: sender, buyer, actor or viewer; repeat. Default: all.")  # fmt: skip
@json_option
def new(*, key_id: str, as_json: bool, **bounds: str | tuple[str, ...] | None) -> None:
    """Make the key NAME, and print its secret."""
    for name in (key_id, *(bounds["senders"] or ())):
        if not is_id(name):
            raise click.UsageError(f"{name!r} is no id: 1 to 64 letters, digits and ._:- make one.")
    with changed_keys(_file()) as known:
        if key_id == OURS or key_id in known:
            answer = refused_answer(Reason.CONFLICTING_JOB, f"There is a key {key_id} already: choose another name.")
        else:
            if OURS not in known:
                known[OURS] = KnownKey(id=OURS, secret=new_secret(), created_at=utc_now())
            known[key_id] = KnownKey(
                id=key_id,
                secret=new_secret(),
                created_at=utc_now(),
                **{name: bound or None for name, bound in bounds.items()},
            )
            answer = {"status": "done", "secret": known[key_id].secret, **_shown(known[key_id])}
    print_answer(answer, as_json=as_json, table=_print_new)


@keys.command("list")
@table_options
def list_keys(*, as_json: bool) -> None:
    """List the keys, without their secrets. The key `postage` is the one with which Postage itself signs."""
    rows = [_shown(key) for key in read_keys(_file()).values()]
    print_answer({"status": "done", "file": str(_file()), "rows": rows}, as_json=as_json, table=_print_keys)


@keys.command()
@click.argument("key_id", metavar="NAME")
@json_option
def revoke(*, key_id: str, as_json: bool) -> None:
    """Revoke the key NAME: within a second, workers refuse what is signed with it, also what waits by then."""
    with changed_keys(_file()) as known:
        key = known.get(key_id)
        if key is None or key_id == OURS:
            why = "Postage itself signs with it" if key else "`postage keys list` shows those that there are"
            answer = refused_answer(Reason.NOT_FOUND, f"There is no key {key_id} to be revoked: {why}.")
        else:
            if key.revoked_at is None:
                known[key_id] = key.model_copy(update={"revoked_at": utc_now()})
            answer = {"status": "done", **_shown(known[key_id])}
    print_answer(answer, as_json=as_json, table=_print_revoked)


def _file() -> Path:
    return current_session().settings.producer_keys_file


def _shown(key: KnownKey) -> Json:
    return {
        "key": key.id,
        "organization": key.organization,
        "tasks": key.tasks,
        "senders": key.senders,
        "created_at": iso_time(key.created_at),
        "revoked_at": key.revoked_at and iso_time(key.revoked_at),
    }


def _print_new(console: Console, answer: Json) -> None:
    console.print(f"Key {answer['key']} is made. Its producer needs this name and this secret, which is shown once:")
    console.print(answer["secret"], soft_wrap=True)


def _print_keys(console: Console, answer: Json) -> None:
    rows = table("Keys", "key", "organization", "tasks", "senders", "made", "revoked")
    for key in answer["rows"]:
        bounds = (key["organization"] or "all", *("all" if key[of] is None else ", ".join(key[of])
                                                  for of in ("tasks", "senders")))  # fmt: skip
        rows.add_row(key["key"], *bounds, moment(key["created_at"]), moment(key["revoked_at"]))
    console.print(rows if answer["rows"] else Text(f"There are no keys in {answer['file']}."))


def _print_revoked(console: Console, answer: Json) -> None:
    console.print(f"Key {answer['key']} is revoked since {moment(answer['revoked_at'])}.")
