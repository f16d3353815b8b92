"""How carriers stand: `postage carriers`, `postage status`, and the metrics of a worker."""

from collections.abc import Iterator
from datetime import timedelta
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.database.engine import Database, transaction_time
from models.messages.fields import Kind
from models.sends.carrier import Outcome, Receipt
from models.sends.resting import begin_rest, claim_probe, find_rests
from tasks.context import Context
from tests.factories import email_job
from tests.fakes import ACCEPTED, answer
from tests.integration.commands import Run, printed, runner_of
from tests.integration.sending import pass_time, scripted_context
from tests.integration.templates import url_of
from tests.servers import free_port
from worker.app import PostageApp, create_app
from worker.cli.carriers import carriers
from worker.cli.status import status
from worker.metrics import served_metrics
from worker.settings import Settings

TWO_RELAYS = "smtp://user:secret@mail-1.example:587?name=first smtps://mail-2.example?name=second&priority=2"
NO_LOGIN = Receipt(Outcome.OUR_FAULT, "The mail server refuses our login (535 5.7.8).")


@pytest.fixture
def app(stocked: Database, valkey_url: str) -> Iterator[PostageApp]:
    """Give an app with two mail servers and one SMS gateway."""
    settings = Settings(
        database_url=url_of(stocked), broker_url=valkey_url, smtp_url=TWO_RELAYS, sms_url="https://sms.example"
    )
    app = create_app(settings)
    yield app
    app.close_context()
    app.close()


@pytest.fixture
def run(app: PostageApp) -> Run:
    """Give `postage carriers`."""
    return runner_of(carriers, app)


AN_HOUR = timedelta(hours=1)


def rest(database: Database, carrier: str, kind: Kind = "email", *, begins_in: timedelta = AN_HOUR) -> None:
    """Let a carrier rest for what is our fault; it rests longer than any test takes if that begins in an hour."""
    database.write(
        lambda connection: begin_rest(
            connection, kind, carrier, NO_LOGIN.detail, transaction_time(connection) + begins_in, is_our_fault=True
        )
    )


def states(run: Run) -> list[tuple[str, str, str]]:
    return [(row["kind"], row["name"], row["state"]) for row in printed(run("list", "--json"))["rows"]]


# -- list -------------------------------------------------------------------------------------------------------------


def test_carriers_that_work_are_listed_without_passwords(run: Run) -> None:
    shown = run("list")

    assert states(run) == [("email", "first", "works"), ("email", "second", "works"), ("sms", "sms.example", "works")]
    assert "smtp://mail-1.example:587" in shown.stdout
    assert "secret" not in shown.stdout + run("list", "--json").stdout


def test_one_that_rests_is_listed_with_why_and_until_when(run: Run, stocked: Database) -> None:
    rest(stocked, "first")

    row = printed(run("list", "--json"))["rows"][0]

    assert (row["state"], row["fault"], row["why"], row["times"]) == ("rests", "ours", NO_LOGIN.detail, 1)
    assert row["since"] < row["until"]
    assert "our fault: The mail server refuses our login" in run("list").stdout


def test_one_whose_rest_is_over_is_to_be_tried(run: Run, stocked: Database) -> None:
    rest(stocked, "first", begins_in=-AN_HOUR)

    assert states(run)[0] == ("email", "first", "tried")


def test_one_that_is_not_set_up_any_more_is_listed_until_it_is_woken(run: Run, stocked: Database) -> None:
    rest(stocked, "old")
    assert states(run)[-1] == ("email", "old", "rests")

    assert "is not set up here, and is forgotten" in run("wake", "old").stdout
    assert len(states(run)) == 3


def test_the_status_of_everything_has_them(app: PostageApp, stocked: Database) -> None:
    rest(stocked, "second")
    of_all = runner_of(status, app)

    assert [row["state"] for row in printed(of_all("--json"))["carriers"]] == ["works", "rests", "works"]
    assert "postage carriers wake NAME" in of_all().stdout


# -- wake -------------------------------------------------------------------------------------------------------------


def test_one_that_is_woken_is_tried_by_the_next_job(run: Run, stocked: Database) -> None:
    rest(stocked, "first")

    assert "first (email): the next job tries it." in run("wake", "first").stdout

    assert states(run)[0] == ("email", "first", "tried")
    assert stocked.write(lambda connection: claim_probe(connection, "email", "first", transaction_time(connection)))


def test_there_is_nothing_to_wake_in_one_that_works(run: Run) -> None:
    woken = run("wake", "first")

    assert (woken.exit_code, "there is nothing to wake" in woken.stdout) == (1, True)


# -- metrics ----------------------------------------------------------------------------------------------------------


def metrics(settings: Settings) -> dict[tuple[str, ...], float]:
    """Give the metrics of carriers that are not 0, by name and labels."""
    with urlopen(f"http://127.0.0.1:{settings.metrics_port}/metrics", timeout=60) as page:
        families = text_string_to_metric_families(page.read().decode())
    return {
        (
            sample.name,
            *(sample.labels[name] for name in ("kind", "carrier", "outcome") if name in sample.labels),
        ): sample.value
        for family in families
        for sample in family.samples
        if sample.name in ("postage_deliveries_total", "postage_carrier_resting") and sample.value
    }


def test_metrics_tell_how_deliveries_ended_and_which_carriers_rest(stocked: Database) -> None:
    settings = Settings(smtp_url="smtp://mail.example?name=mail", metrics_port=free_port())
    context = scripted_context(stocked, ACCEPTED, NO_LOGIN)
    opened: list[Context] = []
    with served_metrics(settings, lambda: opened[0] if opened else None):
        assert metrics(settings) == {}, "nothing was sent yet"
        opened.append(context)
        for job_id in ("one", "two"):
            answer(context, "email.send", email_job(job_id))

        assert metrics(settings) == {
            ("postage_deliveries_total", "email", "mail", "accepted"): 1,
            ("postage_deliveries_total", "email", "mail", "our_fault"): 1,
            ("postage_carrier_resting", "email", "mail"): 1,
        }

        pass_time(context)
        answer(context, "email.send", email_job("three"))

        assert ("postage_carrier_resting", "email", "mail") not in metrics(settings)
        with stocked.snapshot() as connection:
            assert find_rests(connection) == []
