"""What logs say of exceptions: where they come from, and nothing that a producer gave."""

import logging
import sqlite3
from typing import Any

import pytest
from kombu.exceptions import OperationalError
from redis import ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from models.errors import PostageError
from worker.fault_words import describe, format_fault, hide_texts

SECRET = "quokka"


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """Give an exception as it is when it was raised."""
    with pytest.raises(type(error)) as caught:
        raise error from cause
    return caught.value


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError(SECRET), "KeyError"),
        (TypeError(f"'{SECRET}' is no number"), "TypeError"),
        (UnicodeEncodeError("ascii", SECRET, 0, 1, "no"), "UnicodeEncodeError"),
        (PostageError("It is full."), "PostageError: It is full."),
        (OSError(111, "Connection refused"), "ConnectionRefusedError: [Errno 111] Connection refused"),
        (ResponseError("OOM command not allowed"), "ResponseError: OOM command not allowed"),
        (ResponseError(f"Command # 1 (LPUSH email {SECRET}…) of pipeline caused error: OOM"), "ResponseError: OOM"),
        (raised(OperationalError(f"'{SECRET}'"), KeyError(SECRET)), "OperationalError: KeyError"),
        (
            raised(OperationalError("refused"), RedisConnectionError("Error 111 connecting")),
            "OperationalError: ConnectionError: Error 111 connecting",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_text_of_an_exception_is_given_where_it_repeats_nothing(error: BaseException, words: str) -> None:
    assert describe(error) == words


def test_an_error_of_the_database_names_the_statement_and_no_value() -> None:
    engine = create_engine("sqlite://", hide_parameters=True)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (a TEXT CHECK (a = 'b'))"))
        with pytest.raises(IntegrityError) as caught:
            connection.execute(text("INSERT INTO t VALUES (:a)"), {"a": SECRET})
    engine.dispose()

    assert isinstance(caught.value.orig, sqlite3.IntegrityError)
    assert describe(caught.value) == "IntegrityError: IntegrityError [INSERT INTO t VALUES (?)]"
    assert SECRET not in format_fault(caught.value)


def test_a_traceback_shows_each_exception_that_led_to_another() -> None:
    shown = format_fault(raised(PostageError("It is full."), raised(KeyError(SECRET))))

    assert SECRET not in shown
    assert shown.index("KeyError") < shown.index("This led to:") < shown.index("PostageError: It is full.")
    assert shown.count("in raised") == 2


def test_each_exception_of_a_group_is_shown() -> None:
    shown = format_fault(raised(ExceptionGroup("some", [KeyError(SECRET), PostageError("It is full.")])))

    assert SECRET not in shown
    assert "PostageError: It is full." in shown


@pytest.mark.parametrize(
    ("message", "args", "shown"),
    [
        ("it failed: %r", (KeyError(SECRET),), "it failed: KeyError"),
        ("%s: it failed: %s", ("mail", PostageError("full")), "mail: it failed: PostageError: full"),
        ("it failed: %(exc)s%(traceback)s", {"exc": SECRET, "traceback": SECRET}, "it failed: an exception"),
        ("plain", (), "plain"),
    ],
)
def test_a_line_of_a_library_shows_no_text_of_an_exception(message: str, args: Any, shown: str) -> None:
    record = logging.LogRecord("a.library", logging.ERROR, "", 0, message, args, None)

    assert hide_texts(record)
    assert record.getMessage() == shown
