"""A broker behind TLS: its certificate is verified, and a URL that cannot be meant is refused by every command."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.deployment import Deploy, Deployment, run
from tests.flows.jobs import email_job
from tests.integration.tls import CERTIFICATES, TlsProxy
from tests.servers import ValkeyServer

pytestmark = pytest.mark.timeout(120)

SECRET = "s3cret-word"
COMMANDS = {
    "worker": ("worker",),
    "beat": ("beat",),
    "flower": ("flower",),
    "send-email": ("send-email", "--sender", "a", "--to", "a@b.example", "--subject", "Hello", "--text", "Hello"),
    "status": ("status",),
    "doctor": ("doctor",),
}
URLS = [
    (f"redis://:{SECRET}@broker/x", "is the number of a database, as in redis://broker:6379/0"),
    (f"amqp://:{SECRET}@broker", "a broker is redis://"),
    (f"redis://:{SECRET}@/0", "it names no host: write redis://host:6379/0"),
    (f"redis://:{SECRET}@broker:port/0", "its port must be a number from 1 to 65535"),
    (f"redis://:{SECRET}@broker:70000/0", "its port must be a number from 1 to 65535"),
    (f"rediss://:{SECRET}@broker/0?ssl_cert_reqs=yes", "its ssl_cert_reqs must be one of required"),
]


@pytest.fixture
def proxy(valkey: ValkeyServer) -> Iterator[TlsProxy]:
    """Give a broker with TLS."""
    with TlsProxy(valkey.port) as proxy:
        yield proxy


def test_jobs_and_answers_go_over_tls_with_a_certificate_that_is_verified(deploy: Deploy) -> None:
    deployment: Deployment = deploy()
    port = int(str(deployment.settings["broker_url"]).rpartition(":")[2].partition("/")[0])
    with TlsProxy(port) as proxy:
        url = f"rediss://localhost:{proxy.port}/0?ssl_ca_certs={CERTIFICATES / 'server.pem'}"
        deployment.settings["broker_url"] = url
        with deployment:
            owner, member = deployment.people(email=3)
            deployment.send("email.send", email_job("one", member))
            deployment.wait_until_final("one")

            assert deployment.remaining(owner) == {"email": 2, "sms": 0}
            assert f"at localhost:{proxy.port}/0" in deployment.worker.output
            status = run("status", "one", "--json", cwd=deployment.folder, **deployment.settings)
            assert (status.code, '"sent"' in status.out) == (0, True), status.err
        assert proxy.connections > 1


@pytest.mark.parametrize("command", ["worker", "send-email"])
def test_a_certificate_that_nobody_vouches_for_is_refused_with_a_sentence(
    tmp_path: Path, sqlite_url: str, proxy: TlsProxy, command: str
) -> None:
    url = f"rediss://:{SECRET}@localhost:{proxy.port}/0"

    result = run(*COMMANDS[command], cwd=tmp_path, database_url=sqlite_url, broker_url=url)

    printed = " ".join((result.out + result.err).split())
    assert result.code != 0
    assert f"The broker at localhost:{proxy.port}/0 cannot be used: " in printed
    assert "let ?ssl_ca_certs=FILE in its URL name the certificate of the authority" in printed
    assert "Traceback" not in printed
    assert SECRET not in printed


def test_whoever_forgets_tls_is_told_of_it(tmp_path: Path, sqlite_url: str, proxy: TlsProxy) -> None:
    result = run("beat", cwd=tmp_path, database_url=sqlite_url, broker_url=f"redis://localhost:{proxy.port}/0")

    assert result.code == 1
    assert f"The broker at localhost:{proxy.port}/0 cannot be used: " in result.err
    assert "Perhaps it speaks TLS on this port: write rediss://." in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(("command", "wrong"), list(zip(COMMANDS, URLS, strict=True)))
def test_every_command_says_what_to_write_in_place_of_a_wrong_url(
    tmp_path: Path, sqlite_url: str, command: str, wrong: tuple[str, str]
) -> None:
    url, sentence = wrong

    result = run(*COMMANDS[command], cwd=tmp_path, database_url=sqlite_url, broker_url=url)

    printed = " ".join((result.out + result.err).split())
    assert result.code != 0
    assert "POSTAGE_BROKER_URL: " in printed
    assert sentence in printed
    assert "Traceback" not in printed
    assert SECRET not in printed
