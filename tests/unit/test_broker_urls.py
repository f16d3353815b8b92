"""URLs of several Sentinels: every part gets what one of them says, and none shows a password."""

import re
from ssl import CERT_REQUIRED

import pytest
from celery import Celery
from celery.app.utils import filter_hidden_settings
from kombu import Connection
from redis import SSLConnection

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


@pytest.mark.parametrize(
    ("url", "completed"),
    [
        ("redis://broker", "redis://broker"),
        ("redis+socket:///run/v.sock?virtual_host=2", "redis+socket:///run/v.sock?virtual_host=2"),
        ("rediss://broker", "rediss://broker?ssl_cert_reqs=required"),
        ("rediss://u:p@broker:6380/3?", "rediss://u:p@broker:6380/3?ssl_cert_reqs=required"),
        (f"rediss://b/0?ssl_ca_certs={__file__}", f"rediss://b/0?ssl_ca_certs={__file__}&ssl_cert_reqs=required"),
        ("rediss://broker?ssl_cert_reqs=CERT_NONE", "rediss://broker?ssl_cert_reqs=CERT_NONE"),
        (
            "rediss://b?ssl_check_hostname=false",
            "rediss://b?ssl_check_hostname=false&ssl_cert_reqs=required",
        ),
    ],
)
def test_a_certificate_is_verified_unless_the_url_says_otherwise(url: str, completed: str) -> None:
    assert complete(url) == completed
    assert complete(completed) == completed


def test_kombu_and_celery_verify_the_certificate_of_a_completed_url() -> None:
    url = complete("rediss://broker/3")

    connection = Connection(url)
    backend = Celery("any", backend=url, set_as_current=False).backend

    assert connection.ssl == {"ssl_cert_reqs": CERT_REQUIRED}
    assert connection.virtual_host == "3"
    assert (backend.connparams["ssl_cert_reqs"], backend.connparams["db"]) == (CERT_REQUIRED, 3)
    assert backend.connparams["connection_class"] is SSLConnection


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("broker:6379", "a broker is redis://"),
        ("amqp://broker", "a broker is redis://"),
        ("", "a broker is redis://"),
        ("redis://", "it names no host: write redis://host:6379/0"),
        (f"rediss://:{SECRET}@/0", "it names no host: write rediss://host:6379/0"),
        (f"redis://:{SECRET}@broker/x", "is the number of a database, as in redis://broker:6379/0"),
        ("redis://broker/0/1", "is the number of a database"),
        ("redis://broker/0#1", "is the number of a database"),
        ("redis+socket://", "it names no socket: write redis+socket:///path/of/the/socket"),
        ("redis://broker?ssl_cert_reqs=required", "for TLS, write rediss://"),
        ("rediss://broker?ssl_cert_reqs=yes", "its ssl_cert_reqs must be one of required, optional, none"),
        ("rediss://broker?ssl_ca_certs=/no/such/file", "the file that its ssl_ca_certs names cannot be read: /no/such"),
        ("rediss://broker?db=3", "behind a ? it may have ssl_cert_reqs, ssl_check_hostname, ssl_ca_certs"),
    ],
)
def test_a_url_that_names_no_broker_is_refused_with_what_to_write(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as refused:
        complete(url)

    assert SECRET not in str(refused.value)
