"""`--watch`: a command that looks again and again."""

import click
import pytest
from click.testing import CliRunner

from worker.cli.watching import watchable


def looking(*, ends_after: int | None) -> tuple[click.Command, list[str]]:
    """Give a command that is over after so many looks, or that Ctrl-C ends at the fourth; and what it looked at."""
    looks: list[str] = []

    @click.command()
    @click.argument("what")
    @watchable
    def look(*, what: str) -> bool:
        if len(looks) == 3:
            raise KeyboardInterrupt
        looks.append(what)
        click.echo(f"look {len(looks)}")
        return len(looks) == ends_after

    return look, looks


def test_without_it_a_command_looks_once() -> None:
    command, looks = looking(ends_after=None)

    assert CliRunner().invoke(command, ["job"]).exit_code == 0
    assert looks == ["job"]


def test_it_looks_until_it_is_over() -> None:
    command, looks = looking(ends_after=2)

    result = CliRunner().invoke(command, ["job", "--watch", "0.5"])

    assert (result.exit_code, result.output) == (0, "look 1\nlook 2\n")
    assert looks == ["job", "job"]


def test_ctrl_c_ends_it_without_an_error() -> None:
    command, looks = looking(ends_after=None)

    assert CliRunner().invoke(command, ["--watch", "0.5", "job"]).exit_code == 0
    assert len(looks) == 3


@pytest.mark.parametrize("seconds", ["0", "-1", "soon"])
def test_a_pause_that_is_none_is_refused(seconds: str) -> None:
    command, looks = looking(ends_after=None)

    assert CliRunner().invoke(command, ["job", "--watch", seconds]).exit_code == 2
    assert looks == []
