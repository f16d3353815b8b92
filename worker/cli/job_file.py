"""Files of jobs: one JSON object {"task": …, "job": …} a line. Empty lines, and lines with # first, are skipped."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.errors import OperatorError
from models.messages.base import Json
from models.messages.wire import MESSAGES


class JobFileError(OperatorError):
    """A line of a file is not a job."""


@dataclass(frozen=True, slots=True)
class JobLine:
    """One job of a file."""

    number: int
    task: str
    job: Json


def each_job(file: Path) -> Iterator[JobLine]:
    """Yield the jobs of a file, one by one.

    Raises
    ------
    JobFileError
        Naming the first line that is not a job.

    """
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, text in enumerate(lines, start=1):
            if text.strip() and not text.lstrip().startswith("#"):
                yield _parse_line(file, number, text)


def _parse_line(file: Path, number: int, text: str) -> JobLine:
    try:
        given = json.loads(text)
        task, job = given["task"], given["job"]
        is_job = set(given) == {"task", "job"} and task in MESSAGES
    except (ValueError, KeyError, TypeError, RecursionError):
        is_job = False
    if not is_job:
        sentence = f'{file}, line {number}: not {{"task": …, "job": …}} with one of the tasks {", ".join(MESSAGES)}.'
        raise JobFileError(sentence)
    return JobLine(number, task, job)
