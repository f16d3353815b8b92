"""The command that checks a statement without the database."""

import json
from typing import IO

import click

from tasks import operating
from worker.cli import tables
from worker.cli.output import json_option, print_answer


@click.command()
@click.argument("file", type=click.File(encoding="utf-8"))
@json_option
def verify(*, file: IO[str], as_json: bool) -> None:
    """Check FILE, a statement as `postage statement VIEWER --json` prints it. No database is asked.

    Says which entries are wrong: their hashes, numbers, sums or contents. Exits with 0 only if all are right.
    """
    try:
        statement = json.load(file)
    except (ValueError, RecursionError) as error:
        sentence = f"{file.name} is not JSON: {error}"
        raise click.ClickException(sentence) from error
    print_answer(operating.verify(statement), as_json=as_json, table=tables.verified)
