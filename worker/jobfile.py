"""Files of jobs: one JSON object {"task": …, "job": …} a line. Empty lines, and lines with #, are passed over."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.messages import MESSAGES
from tasks.context import Json


class JobFileError(Exception):
    """A line of a file is no job."""


@dataclass(frozen=True, slots=True)
class JobLine:
    """One job of a file."""

    number: int
    task: str
    job: Json


def each_job(file: Path) -> Iterator[JobLine]:
    """The jobs of a file, one by one.

    Raises
    ------
    JobFileError
        Naming the first line that is none.

    """
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, text in enumerate(lines, start=1):
            if text.strip() and not text.lstrip().startswith("#"):
                yield _read(file, number, text)


def _read(file: Path, number: int, text: str) -> JobLine:
    try:
        given = json.loads(text)
        task, job = given["task"], given["job"]
        known = set(given) == {"task", "job"} and task in MESSAGES
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        sentence = f'{file}, line {number}: not {{"task": …, "job": …}} with one of the tasks {", ".join(MESSAGES)}.'
        raise JobFileError(sentence)
    return JobLine(number, task, job)
