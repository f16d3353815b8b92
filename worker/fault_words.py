"""What logs say of an exception: its type and where it was raised, and its text only where that repeats nothing given.

The text of an exception may repeat what a producer gave: a database names the row that it refuses, Python the key that
is missing, and Redis the command that failed, which is a whole message.
"""

import logging
import re
import traceback
from collections.abc import Iterator
from typing import TextIO

import psycopg
from kombu.exceptions import OperationalError
from redis import RedisError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from structlog.typing import ExcInfo

from models.errors import PostageError
from models.text import sanitize

TEXT_MAX = 500
"""Characters of an exception's text that are logged."""
DATA_ERRORS = "22"
"""The class of SQLSTATEs whose texts repeat values (PostgreSQL, appendix A)."""
_PIPELINED = re.compile(r"\ACommand # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)
"""What redis-py puts before the error of a command that was sent with others: the command, with its arguments."""


def describe(error: BaseException) -> str:
    """Return the type of an exception, with its text if that repeats nothing that was given."""
    text = sanitize(_text(error), TEXT_MAX)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _text(error: BaseException) -> str:
    match error:
        case DBAPIError(orig=BaseException() as of_driver):
            statement = error.statement or ""
            return f"{describe(of_driver)} [{' '.join(statement.split())}]" if statement else describe(of_driver)
        case psycopg.Error():
            is_of_data = (error.sqlstate or "").startswith(DATA_ERRORS)
            text = error.diag.message_primary or ("" if error.sqlstate else str(error))  # of a server, or of the driver
            return f"SQLSTATE {error.sqlstate}" if is_of_data else text
        case OperationalError(__cause__=BaseException() as cause):  # kombu's, in place of what was raised
            return describe(cause)
        case RedisError():
            return _PIPELINED.sub("", str(error))
        case OSError() | SQLAlchemyError() | PostageError():
            return str(error)
    return ""


def format_fault(error: BaseException) -> str:
    """Return a traceback, with what led to the exception, in which each exception is described as here."""
    return "\n".join(_lines(error, set()))


def _lines(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None and id(earlier) not in seen:
        yield from _lines(earlier, seen)
        yield "\nThis led to:\n"
    yield "Traceback (most recent call last):"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip()
    yield describe(error)
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield "\nOne of its exceptions:\n"
            yield from _lines(each, seen)


def write_fault(stream: TextIO, exc_info: ExcInfo) -> None:
    """Write a traceback, as structlog's console renderer asks for it."""
    stream.write(f"{format_fault(exc_info[1])}\n")


def hide_texts(record: logging.LogRecord) -> bool:
    """Put descriptions in place of the exceptions in a line that a library logs. A filter that lets every line pass."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(record.args, tuple):
        record.args = tuple(_Words(each) if isinstance(each, BaseException) else each for each in record.args)
    elif isinstance(record.args, dict) and "exc" in record.args:  # celery.app.trace, which gives texts
        words = describe(error) if error is not None else "an exception"
        record.args = {**record.args, "exc": words, "traceback": ""}
    return True


class _Words:
    """The description of an exception, for any conversion of a format."""

    def __init__(self, error: BaseException) -> None:
        self._words = describe(error)

    def __repr__(self) -> str:
        return self._words
