"""URLs of several Sentinels: every part gets what one of them says, and none shows a password."""

import pytest
from celery.app.utils import filter_hidden_settings
from kombu import Connection

from tasks.broker_urls import complete, names_sentinels, without_repeated_passwords
from worker.celery_config import celery_config
from worker.settings import Settings

SECRET = "s3cret-word"


@pytest.mark.parametrize(
    ("url", "completed"),
    [
        ("redis://:secret@broker/3", "redis://:secret@broker/3"),
        ("sentinel://a", "sentinel://a:26379/0"),
        ("sentinel://a:1;sentinel://b:2/3", "sentinel://a:1/3;sentinel://b:2/3"),
        ("sentinel://u:p%3B@a/3;[::1]:9;", "sentinel://u:p%3B@a:26379/3;sentinel://u:p%3B@[::1]:9/3"),
        ("sentinel://a;sentinel://:p@b", "sentinel://:p@a:26379/0;sentinel://:p@b:26379/0"),
    ],
)
def test_every_sentinel_has_the_user_password_and_database_of_one(url: str, completed: str) -> None:
    assert complete(url) == completed
    assert complete(completed) == completed


def test_kombu_reads_the_same_from_whichever_sentinel_it_turns_to() -> None:
    connection = Connection(complete("sentinel://a;sentinel://u:p@b:7/3"))
    seen = []
    for _ in range(3):
        seen.append((connection.hostname, connection.port, connection.userid, connection.password))
        assert connection.virtual_host == "3"
        connection.maybe_switch_next()

    assert seen == [("a", 26379, "u", "p"), ("b", 7, "u", "p"), ("a", 26379, "u", "p")]


@pytest.mark.parametrize(
    "url",
    [
        f"sentinel://:{SECRET}@a;sentinel://:other@b",
        "sentinel://a/1;sentinel://b/2",
        "sentinel://a/x",
        "sentinel://a;redis://b",
        "sentinel://",
        "sentinel://;",
        "sentinel://a?ssl_cert_reqs=none",
    ],
)
def test_sentinels_that_contradict_each_other_are_refused_without_a_secret(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(its parts|each part|what follows)") as refused:
        complete(url)

    assert SECRET not in str(refused.value)


def test_no_password_is_shown_by_remote_control() -> None:
    url = f"sentinel://:{SECRET}@a;sentinel://:{SECRET}@b"
    config = celery_config(Settings(broker_url=url, sentinel_password=SECRET + "2"))

    assert names_sentinels(config["broker_url"])
    assert config["result_backend"] == without_repeated_passwords(config["broker_url"])
    assert config["result_backend"] == f"sentinel://:{SECRET}@a:26379/0;sentinel://b:26379/0"
    assert SECRET not in str(filter_hidden_settings(config))
