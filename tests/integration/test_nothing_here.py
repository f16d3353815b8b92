"""A command in a folder where nothing is says so, and leaves nothing behind."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from worker.cli.main import postage
from worker.places import (
    NothingHereError,
    carriers,
    carriers_that_send_nowhere,
    make_var,
    named_parts,
    require_embedded,
)
from worker.settings import Settings

NOTHING = "Error: Nothing is here: "


def run(folder: Path, *words: str, **environment: str) -> Result:
    """Run a command as if in this folder, with no settings but these."""
    given = {"POSTAGE_VAR": str(folder / "var"), **environment}
    return CliRunner(env=given).invoke(postage, words)


COMMANDS = {
    "audit": ["audit"],
    "status": ["status"],
    "status of a job": ["status", "job-1"],
    "overview": ["overview", "john"],
    "buy": ["buy", "john", "--email", "1", "--amount", "1", "--currency", "EUR"],
    "erase": ["erase", "john", "--by", "mary"],
    "dead": ["dead", "list"],
    "unknown": ["unknown", "list"],
    "findings": ["findings", "list"],
    "send-email": ["send-email", "--sender", "a", "--to", "a@b.example", "--subject", "s", "--text", "t"],
    "migrate": ["migrate"],
    "worker": ["worker"],
    "beat": ["beat"],
    "flower": ["flower"],
    "inspect": ["inspect", "ping"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_command_in_an_empty_folder_says_so_and_leaves_nothing_behind(tmp_path: Path, words: list[str]) -> None:
    result = run(tmp_path, *words)

    assert result.exit_code == 1
    assert result.stderr.startswith(NOTHING), result.output
    assert "POSTAGE_VAR" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "given", "missing"),
    [
        (["status"], "POSTAGE_DATABASE_URL", "POSTAGE_BROKER_URL is not set"),
        (["status"], "POSTAGE_BROKER_URL", "POSTAGE_DATABASE_URL is not set"),
    ],
    ids=["broker", "database"],
)
def test_what_is_missing_is_named(tmp_path: Path, words: list[str], given: str, missing: str, sqlite_url: str) -> None:
    urls = {"POSTAGE_DATABASE_URL": sqlite_url, "POSTAGE_BROKER_URL": "redis://127.0.0.1:1/0"}

    assert missing in run(tmp_path, *words, **{given: urls[given]}).stderr


def test_where_up_has_run_other_commands_work(tmp_path: Path) -> None:
    settings = Settings(var=tmp_path / "var")
    with pytest.raises(NothingHereError):
        require_embedded(settings, database=True, broker=True)
    make_var(settings)

    require_embedded(settings, database=True, broker=True)
    assert run(tmp_path, "audit").exit_code == 0
    assert (tmp_path / "var").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("command", [["up"], ["up", "--exit"]], ids=" ".join)
def test_a_folder_that_cannot_be_made_is_named_in_a_sentence(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "file").touch()

    result = run(tmp_path / "file", *command)

    assert result.exit_code == 1
    assert result.stderr.startswith(
        f"Error: The folder {tmp_path / 'file' / 'var'} cannot be written: Not a directory."
    )


def test_carriers_that_send_nowhere_are_named() -> None:
    real = Settings(
        smtp_url="smtp://user:s3cret@mail.example:587?starttls=require", sms_url="https://k:v@sms.example/x"
    )

    assert carriers_that_send_nowhere(real) == []
    assert carriers(real) == {"email": "smtp://mail.example:587", "sms": "https://sms.example"}
    assert [words.partition(":")[0] for words in carriers_that_send_nowhere(Settings())] == ["email", "sms"]


def test_what_a_process_uses_is_named_without_passwords() -> None:
    settings = Settings(
        database_url="postgresql://u:s3cret@db.example/postage", smtp_url="smtp://u:s3cret@mail.example:25"
    )

    assert named_parts(settings)["database"] == "postage at db.example:5432"
    assert "s3cret" not in str(named_parts(settings))
    assert named_parts(settings).keys() - named_parts(settings, sends=False).keys() == {"email", "sms"}
