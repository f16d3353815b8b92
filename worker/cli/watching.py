"""Commands that go on looking: `--watch` prints what they show again and again."""

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

F = TypeVar("F", bound=Callable[..., Any])

EVERY_S = 2.0
LEAST_S = 0.5

watch_option = click.option(
    "--watch",
    "watch_s",
    is_flag=False,
    flag_value=EVERY_S,
    type=click.FloatRange(min=LEAST_S),
    metavar="[SECONDS]",
    help=f"Look again and again, every so many seconds (default: {EVERY_S:g}), until Ctrl-C.",
)


def watchable(command: F) -> F:
    """Give a command the option --watch. The command returns True once what it shows will not change any more.

    On a terminal each look replaces the one before; elsewhere they follow one another. Ctrl-C is no error.
    """

    @functools.wraps(command)
    def look(*, watch_s: float | None, **given: Any) -> None:  # noqa: ANN401  the command's own
        try:
            while not command(**given) and watch_s is not None:
                time.sleep(watch_s)
                click.clear()  # does nothing unless this is a terminal
        except KeyboardInterrupt:
            if watch_s is None:
                raise

    return cast("F", watch_option(look))
