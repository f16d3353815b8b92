"""How commands ask use cases, and how they print the answers."""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import click
from kombu.exceptions import OperationalError
from redis import RedisError
from rich.console import Console
from sqlalchemy import Connection

from models.errors import Refused
from models.messages.answer import Answer, refused_answer
from models.messages.base import Json
from worker.cli.printing import CsvConsole, PlainConsole
from worker.cli.session import current_session

F = TypeVar("F", bound=Callable[..., Any])

_CSV = "worker.cli.output.csv"


def ask(task: str, given: Json) -> Json:
    """Return the answer of a task's use case, run here and now. What is refused is recorded as by a worker."""
    answer = cast("Callable[[Json], Answer]", current_session().app.tasks[task])
    return answer(given).fields


def new_id(prefix: str) -> str:
    """Return an id for a job, an order or a change that was given none."""
    return f"{prefix}-{uuid.uuid4().hex[:16]}"


def table_options(command: F) -> F:
    """Give a command that shows tables the options --json and --csv."""
    return json_option(csv_option(command))


def json_option(command: F) -> F:
    """Give a command the option --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")(command)


def csv_option(command: F) -> F:
    """Give a command the option --csv, which `print_answer` reads from the context."""
    return click.option(
        "--csv", "as_csv", is_flag=True, expose_value=False, callback=_note_csv, help="Print the tables as CSV."
    )(command)


def _note_csv(context: click.Context, _option: click.Parameter, as_csv: bool) -> None:  # noqa: FBT001  click's
    if as_csv:
        context.meta[_CSV] = CsvConsole()


def next_option(command: F) -> F:
    """Give a command the option --next, by which a long list continues."""
    return click.option("--next", "cursor", help="Go on where a page ended: the value after its `More: --next`.")(
        command
    )


def list_answer(list_rows: Callable[[Connection], tuple[list[Json], str | None]]) -> Json:
    """Return the answer that shows one page of a list, of which `list_rows` returns the rows and the next cursor."""
    try:
        rows, cursor = current_session().context.database.read(list_rows)
    except Refused as why:
        return refused_answer(why.reason, why.detail)
    return {"status": "done", "rows": rows, "more": cursor is not None, "next": cursor}


def print_answer(answer: Json, *, as_json: bool, table: Callable[[Console, Json], None]) -> None:
    """Print an answer, as JSON or by `table`. Exits with 1 if it is refused, failed or unknown."""
    if answer.get("status") == "refused" and not as_json:
        click.echo(f"Refused ({answer['reason']}): {answer['detail']}", err=True)
    else:
        show(answer, as_json=as_json, table=table)
    if answer.get("status") in ("refused", "failed", "unknown"):
        raise click.exceptions.Exit(1)


def show(answer: Json, *, as_json: bool, table: Callable[[Console, Json], None]) -> None:
    """Print an answer, as JSON or by `table`, whatever its status is."""
    context = click.get_current_context()
    if as_json and _CSV in context.meta:
        raise click.UsageError("--json and --csv exclude each other.")
    if as_json:
        text = json.dumps(answer, indent=2, ensure_ascii=False)
        click.echo(text.encode("utf-8", "backslashreplace").decode())  # a lone surrogate becomes its \\u escape
    else:
        table(context.meta.get(_CSV) or PlainConsole(), answer)


@contextmanager
def broker_errors() -> Iterator[None]:
    """Turn a broker that does not answer into a sentence.

    Raises
    ------
    click.ClickException
        If the broker does not answer.

    """
    try:
        yield
    except (OperationalError, RedisError) as error:
        raise click.ClickException("The broker does not answer: see POSTAGE_BROKER_URL.") from error
