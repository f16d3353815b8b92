"""Settings: a wrong one is refused with a sentence that names its variable and shows no secret."""

import os
from pathlib import Path

import pytest

from worker.settings import SOCKET_PATH_MAX, Settings, SettingsError


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings that stand in this machine's environment."""
    for name in list(os.environ):
        if name.upper().startswith("POSTAGE_"):
            monkeypatch.delenv(name)


def refusal(monkeypatch: pytest.MonkeyPatch, **settings: str) -> str:
    for name, value in settings.items():
        monkeypatch.setenv(f"POSTAGE_{name}", value)
    with pytest.raises(SettingsError) as refused:
        Settings.from_environment()
    return str(refused.value)


def test_without_any_setting_everything_is_embedded_under_var() -> None:
    settings = Settings.from_environment()

    assert settings.database == f"sqlite:///{Path('var/postage.db').resolve()}"
    assert settings.broker.startswith("redis+socket:///")
    assert settings.results == settings.broker
    assert (settings.smtp_url, settings.sms_url) == ("null://", "null://")


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTAGE_DATABASE_URL", "postgresql://u:p@db/postage")
    monkeypatch.setenv("POSTAGE_BROKER_URL", "redis://broker:6379/0")
    monkeypatch.setenv("POSTAGE_ATTEMPTS_MAX", "3")

    settings = Settings.from_environment()

    assert settings.database == "postgresql+psycopg://u:p@db/postage"
    assert (settings.broker, settings.results) == ("redis://broker:6379/0", "redis://broker:6379/0")
    assert settings.attempts_max == 3


def test_an_unknown_setting_is_refused_with_the_names_of_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = refusal(monkeypatch, DATABSE_URL="sqlite:///x", SMTP_HOST="mail")

    assert "Unknown setting POSTAGE_DATABSE_URL, POSTAGE_SMTP_HOST." in sentence
    assert "POSTAGE_DATABASE_URL" in sentence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://u:secret@db/x"),
        ("DATABASE_URL", ""),
        ("BROKER_URL", "amqp://u:secret@broker"),
        ("BROKER_URL", "redis+cluster://:secret@broker"),
        ("BROKER_URL", "sentinel://:secret@a;sentinel://:secret2@b"),
        ("BROKER_URL", "sentinel://:secret@a:x;sentinel://b"),
        ("RESULT_URL", "sentinel://:secret@a/x"),
        ("SENTINEL_MASTER", ""),
        ("KEY_PREFIX", "shop"),
        ("KEY_PREFIX", "shop*:"),
        ("KEY_PREFIX", "a" * 64 + ":"),
        ("RESULT_URL", "file:///tmp"),
        ("SMTP_URL", "http://u:secret@mail"),
        ("SMTP_URL", ""),
        ("SMTP_URL", "smtp://a smtp://u:secret@a"),
        ("SMTP_URL", "smtp://u:secret@a?rate=fast"),
        ("SMS_URL", "smtp://u:secret@mail"),
        ("CONCURRENCY", "0"),
        ("CONCURRENCY", "many"),
        ("CONCURRENCY", ""),
        ("DATABASE_POOL", "-1"),
        ("SMTP_TIMEOUT_S", "0"),
        ("SMS_TIMEOUT_S", "1e9"),
        ("ATTEMPTS_MAX", "1.5"),
        ("ATTEMPTS_MAX", "0"),
        ("RETRY_BASE_S", "-5"),
        ("RETRY_BASE_S", "nan"),
        ("RETRY_MAX_S", "nan"),
        ("RETRY_MAX_S", "inf"),
        ("LEASE_S", "nan"),
        ("LEASE_S", "inf"),
        ("SWEEP_S", "nan"),
        ("SMTP_TIMEOUT_S", "nan"),
        ("SMS_TIMEOUT_S", "nan"),
        ("VISIBILITY_TIMEOUT_S", "-1"),
        ("FLOWER_PORT", "70000"),
        ("LOG_LEVEL", "LOUD"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_a_wrong_value_is_refused_with_a_sentence_naming_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    sentence = refusal(monkeypatch, **{name: value})

    assert f"POSTAGE_{name}" in sentence
    assert sentence.endswith(".")
    assert "secret" not in sentence


def test_all_wrong_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = refusal(monkeypatch, CONCURRENCY="0", LOG_LEVEL="LOUD")

    assert len(sentence.splitlines()) == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"VISIBILITY_TIMEOUT_S": "599"}, ["POSTAGE_VISIBILITY_TIMEOUT_S (599)", "POSTAGE_LEASE_S (300)"]),
        ({"LEASE_S": "901"}, ["POSTAGE_VISIBILITY_TIMEOUT_S (1800)", "POSTAGE_LEASE_S (901)"]),
        ({"RETRY_BASE_S": "10", "RETRY_MAX_S": "9"}, ["POSTAGE_RETRY_MAX_S", "POSTAGE_RETRY_BASE_S"]),
    ],
)
def test_times_with_which_a_job_could_run_twice_are_refused(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], named: list[str]
) -> None:
    sentence = refusal(monkeypatch, **settings)

    assert [words for words in named if words not in sentence] == []


def test_times_that_are_just_safe_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTAGE_SMTP_TIMEOUT_S", "50")
    monkeypatch.setenv("POSTAGE_LEASE_S", "300")
    monkeypatch.setenv("POSTAGE_VISIBILITY_TIMEOUT_S", "600")

    assert Settings.from_environment().visibility_timeout_s == 600


def test_a_folder_too_deep_for_a_socket_gets_a_short_socket_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = [tmp_path.joinpath(*["d" * 50] * 3, name) for name in ("a", "b")]
    sockets = []
    for folder in deep:
        monkeypatch.setenv("POSTAGE_VAR", str(folder))
        sockets.append(Settings.from_environment().embedded_socket)

    assert all(len(os.fsencode(socket)) <= SOCKET_PATH_MAX for socket in sockets)
    assert sockets[0] != sockets[1]


def test_a_password_with_a_percent_sign_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTAGE_DATABASE_URL", "postgresql://u:100%25@db/x")

    assert Settings.from_environment().database == "postgresql+psycopg://u:100%25@db/x"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.from_environment().concurrency = 1  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    undescribed = [name for name, field in Settings.model_fields.items() if not field.description]

    assert undescribed == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgresql://postage:replace-with-letters-and-digits@postgres/postage"),
        ("BROKER_URL", "redis://:replace-with-other-letters-and-digits@redis:6379/0"),
        ("RESULT_URL", "redis://:replace-me@redis:6379/1"),
        ("SMTP_URL", "smtp://postage:replace-me@mail.example.org"),
        ("SMS_URL", "https://postage:replace-me@sms.example.org/messages"),
        ("SENTINEL_PASSWORD", "replace-me"),
        ("FLOWER_AUTH", "postage:replace-this-too"),
    ],
)
def test_a_password_of_an_example_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    said = refusal(monkeypatch, **{name: value})

    assert said == f"POSTAGE_{name}: its password is the one of an example: replace it with one of your own."
