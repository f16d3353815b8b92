"""The command that shows the wire contract."""

import json
from pathlib import Path

import click

from models.messages.base import Json
from models.messages.schemas import answer_schema, message_schema
from models.messages.wire import MESSAGES
from tasks.contract import asyncapi
from tasks.contract_page import contract_page

TASK = click.Choice(tuple(MESSAGES))


@click.command()
@click.argument("task", required=False, type=TASK, metavar="[TASK]")
@click.option("--answer", "of_answer", is_flag=True, help="Print the schema of what TASK answers.")
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), help="Write all of it into a folder.")
def contract(*, task: str | None, of_answer: bool, folder: Path | None) -> None:
    """Print the wire contract as AsyncAPI 3, or the JSON Schema of the object that TASK takes.

    With --to it writes the AsyncAPI document, the schemas of every task and answer, and a page for people.
    """
    if of_answer and task is None:
        raise click.UsageError("--answer needs the name of a TASK.")
    if folder is not None:
        if task is not None:
            raise click.UsageError("--to writes everything: leave out TASK.")
        _write(folder)
    elif task is None:
        click.echo(_text(asyncapi()), nl=False)
    else:
        click.echo(_text(answer_schema(task) if of_answer else message_schema(task)), nl=False)


def contract_files() -> dict[str, str]:
    """Return the text of each file of the contract, by its name."""
    return {
        "README.md": contract_page(),
        "asyncapi.json": _text(asyncapi()),
        **{f"{task}.json": _text(message_schema(task)) for task in MESSAGES},
        **{f"{task}.answer.json": _text(answer_schema(task)) for task in MESSAGES},
    }


def _text(document: Json) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _write(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contract_files().items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        sentence = f"The contract cannot be written into {folder}: {error.strerror}."
        raise click.ClickException(sentence) from error
