"""`postage settings`: what is in force, and nothing that is secret."""

from typing import get_args

import pytest
from click.testing import CliRunner

from worker.cli.main import postage
from worker.cli.settings import NOT_SHOWN, rows_of
from worker.settings import Settings

SECRET = "hunter2"
TEXTS = {
    name for name, field in Settings.model_fields.items() if str in (field.annotation, *get_args(field.annotation))
}
PLAIN = {
    "sentinel_master",
    "key_prefix",
    "email_headers",
    "signed_queues",
    "flower_address",
    "metrics_address",
    "console_address",
    "console_proxies",
    "console_url",
}


def test_every_text_is_known_to_be_secret_or_not() -> None:
    assert TEXTS == PLAIN | Settings.SECRETS


@pytest.mark.parametrize("name", sorted(Settings.SECRETS))
def test_a_secret_is_not_shown(name: str) -> None:
    in_force = Settings().model_copy(update={name: f"scheme://user:{SECRET}@host"})

    shown = {row["name"]: row["value"] for row in rows_of(in_force)}

    assert shown[f"POSTAGE_{name.upper()}"] == NOT_SHOWN
    assert SECRET not in str(shown)


@pytest.mark.parametrize("option", ["--json", "--csv", None])
def test_it_says_what_the_environment_has_set(option: str | None) -> None:
    environment = {"POSTAGE_BATCH": "50", "POSTAGE_SMTP_URL": f"smtp://me:{SECRET}@mail.example:587"}

    result = CliRunner(env=environment).invoke(postage, ["settings", *([option] if option else [])])

    assert result.exit_code == 0, result.output
    assert "POSTAGE_BATCH" in result.output
    assert NOT_SHOWN in result.output
    assert SECRET not in result.output


def test_a_wrong_setting_is_a_sentence() -> None:
    result = CliRunner(env={"POSTAGE_BATCH": "many"}).invoke(postage, ["settings"])

    assert result.exit_code == 1
    assert result.output.startswith("Error: POSTAGE_BATCH: ")
