"""What users see: their pool, what is theirs alone, and nothing of other pools and organizations."""

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from models.database.engine import Database
from models.sends.carrier import Outcome, Receipt
from tasks.context import Context, Json
from tests.factories import balance, buy, email_job, purchase_order, save_people, share, sms_job
from tests.fakes import NEVER, NOT_NOW, FakeCarrier, answer, make_context, run_enqueued
from tests.integration.sending import pass_time
from tests.integration.templates import database_filled_by

VIEWS = ["views.overview", "views.usage", "views.orders", "views.billing", "views.users", "views.message",
         "views.explain"]  # fmt: skip
OF_A_JOB = ("views.message", "views.explain")


def let_everybody_buy(database: Database) -> None:
    """Let john buy 10 email and 5 SMS credits, peter 7 and mary 2 email credits; then peter uses those of john."""
    save_people(database)
    buy(database, "peter", email=7, order_id="order-peter-own")
    buy(database, "mary", email=2, order_id="order-mary")
    buy(database, "john", email=10, sms=5, order_id="order-john")
    share(database, "peter", "john")


all_have_bought = database_filled_by(let_everybody_buy)


@pytest.fixture
def context(all_have_bought: Database) -> Context:
    """Give a context in which everybody has bought credits, and peter uses those of john."""
    return make_context(all_have_bought)


def view(context: Context, what: str, viewer: str, **fields: Any) -> Json:
    return answer(context, f"views.{what}", {"viewer": viewer, **fields})


def test_an_owner_sees_their_own_credits_and_no_reminder(context: Context) -> None:
    seen = view(context, "overview", "john")

    assert (seen["status"], seen["viewer"], seen["owner"]) == ("done", "john", "john")
    assert (seen["sharing"], seen["reminder"]) == (False, None)
    assert seen["remaining"] == {"email": 10, "sms": 5}


def test_a_credit_user_sees_the_credits_of_the_owner_with_a_reminder(context: Context) -> None:
    seen = view(context, "overview", "peter")

    assert (seen["viewer"], seen["owner"], seen["sharing"]) == ("peter", "john", True)
    assert seen["remaining"] == {"email": 10, "sms": 5}
    assert "john" in seen["reminder"]


def test_a_credit_user_can_see_their_own_credits_alone(context: Context) -> None:
    seen = view(context, "overview", "peter", of="self")

    assert (seen["owner"], seen["remaining"]) == ("peter", {"email": 7, "sms": 0})


def test_the_overview_names_the_plans_that_were_bought_for_the_pool(context: Context) -> None:
    plan = {"plan": "small", "name": "Small", "credits": {"email": 5}, "price": 1, "currency": "EUR"}
    answer(context, "plans.save", plan)
    for number in range(2):
        answer(context, "credits.purchase", {"order_id": f"plan-{number}", "buyer": "peter", "plan": "small"})

    pools = [view(context, "overview", viewer)["plans"] for viewer in ("john", "peter", "mary")]

    [of_john] = pools[0]
    assert (of_john["plan"], of_john["name"], of_john["orders"]) == ("small", "Small", 2)
    assert pools == [[of_john], [of_john], []]


def spend(context: Context) -> None:
    """Let john send an email and two texts, and peter, a day later, an email to two and one that fails."""
    answer(context, "email.send", email_job("j-email", sender="john"))
    answer(context, "sms.send", sms_job("j-sms-1", sender="john"))
    answer(context, "sms.send", sms_job("j-sms-2", sender="john"))
    pass_time(context, timedelta(days=1))
    answer(context, "email.send", email_job("p-email", sender="peter", to=["a@b.test", "c@d.test"]))
    failing = make_context(context.database, email=FakeCarrier(NEVER), clock=context.now)  # type: ignore[arg-type]
    answer(failing, "email.send", email_job("p-fails", sender="peter"))
    answer(context, "email.send", email_job("m-email", sender="mary"))
    answer(context, "email.send", email_job("too-expensive", sender="mary", to=[f"u{n}@x.test" for n in range(50)]))


def usage_shown(seen: Json) -> list[tuple[str, str, str, int]]:
    return [(row["day"], row["user"], row["kind"], row["credits"]) for row in seen["rows"]]


def test_usage_shows_the_pool_by_day_user_and_kind_to_each_member(context: Context) -> None:
    spend(context)

    of_john, of_peter = view(context, "usage", "john"), view(context, "usage", "peter")

    expected = [
        ("2026-01-06", "peter", "email", 2),
        ("2026-01-05", "john", "email", 1),
        ("2026-01-05", "john", "sms", 2),
    ]
    assert usage_shown(of_john) == expected
    assert usage_shown(of_peter) == expected
    assert (of_john["total"], of_peter["total"]) == ({"email": 3, "sms": 2}, {"email": 3, "sms": 2})
    assert (of_john["owner"], of_peter["owner"]) == ("john", "john")
    assert of_john["reminder"] is None
    assert "john" in of_peter["reminder"]


def test_usage_agrees_with_the_balance(context: Context) -> None:
    spend(context)

    assert 10 - view(context, "usage", "john")["total"]["email"] == balance(context.database, "john")


def test_usage_of_oneself_shows_only_what_the_viewer_sent(context: Context) -> None:
    spend(context)

    assert usage_shown(view(context, "usage", "john", of="self")) == [
        ("2026-01-05", "john", "email", 1),
        ("2026-01-05", "john", "sms", 2),
    ]
    assert usage_shown(view(context, "usage", "peter", of="self")) == [("2026-01-06", "peter", "email", 2)]


def test_usage_by_message_has_a_row_for_each_message_newest_first(context: Context) -> None:
    spend(context)

    rows = view(context, "usage", "peter", by="message")["rows"]

    shown = [(row["job_id"], row["user"], row["credits"], row["status"], row["paid_by"]) for row in rows]
    assert shown == [
        ("p-email", "peter", 2, "sent", "john"),
        ("p-fails", "peter", 0, "failed", "john"),
        ("j-email", "john", 1, "sent", "john"),
        ("j-sms-1", "john", 1, "sent", "john"),
        ("j-sms-2", "john", 1, "sent", "john"),
    ]


def test_refunded_credits_are_not_usage(context: Context) -> None:
    partial = Receipt(Outcome.ACCEPTED, refused={"c@d.test": "550"})
    context = make_context(context.database, email=FakeCarrier(partial))

    answer(context, "email.send", email_job(to=["a@b.test", "c@d.test"]))

    assert view(context, "usage", "john")["total"] == {"email": 1, "sms": 0}


def test_a_message_that_waits_is_usage(context: Context) -> None:
    context = make_context(context.database, email=FakeCarrier(NOT_NOW))

    answer(context, "email.send", email_job())

    assert view(context, "usage", "john")["total"] == {"email": 1, "sms": 0}
    assert view(context, "usage", "john", by="message")["rows"][0]["status"] == "retrying"


def test_usage_stays_with_the_pool_that_paid_when_sharing_stops(context: Context) -> None:
    spend(context)
    share(context.database, "peter", "peter")

    assert view(context, "usage", "john")["total"] == {"email": 3, "sms": 2}
    assert view(context, "usage", "peter")["total"] == {"email": 0, "sms": 0}


def test_usage_includes_the_first_time_and_excludes_the_second(context: Context) -> None:
    spend(context)

    first_day = view(context, "usage", "john", since="2026-01-05", until="2026-01-06")
    one_second = view(context, "usage", "john", since="2026-01-06T12:00:00Z", until="2026-01-06T12:00:01Z")
    before = view(context, "usage", "john", until="2026-01-05T12:00:00Z")

    assert first_day["total"] == {"email": 1, "sms": 2}
    assert one_second["total"] == {"email": 2, "sms": 0}
    assert before["total"] == {"email": 0, "sms": 0}


def test_days_are_days_of_utc(context: Context) -> None:
    """The time zones of the server and of the session do not matter."""
    pass_time(context, timedelta(hours=11, minutes=59))
    answer(context, "email.send", email_job("late"))
    pass_time(context, timedelta(minutes=2))
    answer(context, "email.send", email_job("early"))

    days = [row["day"] for row in view(context, "usage", "john")["rows"]]

    assert days == ["2026-01-06", "2026-01-05"]


def test_bulk_messages_are_usage_and_the_bulk_job_itself_is_not(context: Context) -> None:
    recipients = [{"to": f"u{number}@x.test"} for number in range(3)]
    bulk = {"job_id": "bulk", "sender": "peter", "subject": "Hi", "text": "Hi", "recipients": recipients}
    answer(context, "email.send_many", bulk)
    run_enqueued(context)

    assert view(context, "usage", "john")["total"] == {"email": 3, "sms": 0}
    rows = view(context, "usage", "john", by="message")["rows"]
    assert [row["job_id"] for row in rows] == ["bulk/0", "bulk/1", "bulk/2"]


def test_rows_come_in_pages(context: Context) -> None:
    buy(context.database, "mary", email=200)
    recipients = [{"to": f"u{number}@x.test"} for number in range(150)]
    bulk = {"job_id": "bulk", "sender": "mary", "subject": "Hi", "text": "Hi", "recipients": recipients}
    answer(context, "email.send_many", bulk)

    pages = [view(context, "usage", "mary", by="message", page=number) for number in (1, 2, 3)]

    assert [(page["page"], len(page["rows"]), page["more"]) for page in pages] == [
        (1, 100, True),
        (2, 50, False),
        (3, 0, False),
    ]
    shown = {row["job_id"] for page in pages for row in page["rows"]}
    assert len(shown) == 150
    assert [page["total"]["email"] for page in pages] == [150] * 3


def orders_shown(seen: Json) -> list[str]:
    return [row["order_id"] for row in seen["rows"]]


def test_order_history_shows_the_orders_of_the_pool_newest_first(context: Context) -> None:
    pass_time(context, timedelta(days=1))
    answer(context, "credits.purchase", purchase_order("order-peter", "peter", sms=3))

    of_john, of_peter = view(context, "orders", "john"), view(context, "orders", "peter")

    assert orders_shown(of_john) == ["order-peter", "order-john"]
    assert of_peter["rows"] == of_john["rows"]
    assert "john" in of_peter["reminder"]
    assert of_john["reminder"] is None
    assert of_john["rows"][0] == {
        "order_id": "order-peter",
        "buyer": "peter",
        "owner": "john",
        "plan": None,
        "credits": {"email": 0, "sms": 3},
        "amount": 1000,
        "currency": "EUR",
        "at": "2026-01-06T12:00:00.000+00:00",
        "reversed": {"email": 0, "sms": 0},
        "reversals": [],
    }


def test_order_history_of_oneself_shows_what_the_viewer_bought(context: Context) -> None:
    pass_time(context, timedelta(days=1))
    answer(context, "credits.purchase", purchase_order("order-peter", "peter", sms=3))

    assert orders_shown(view(context, "orders", "peter", of="self")) == ["order-peter", "order-peter-own"]
    assert orders_shown(view(context, "orders", "john", of="self")) == ["order-john"]


def test_order_history_shows_no_billing_information(context: Context) -> None:
    shown = [str(view(context, "orders", viewer)) for viewer in ("john", "peter")]

    assert not any("billing" in text or "Acme Ltd" in text for text in shown)


def test_the_owner_does_not_see_orders_from_before_sharing(context: Context) -> None:
    assert orders_shown(view(context, "orders", "john")) == ["order-john"]


@pytest.mark.parametrize("of", ["owner", "self"])
def test_billing_information_is_always_that_of_the_viewer(context: Context, of: str) -> None:
    seen = view(context, "billing", "peter", of=of)

    assert seen == {"status": "done", "viewer": "peter", "billing": {"name": "Peter"}}


def test_billing_information_that_was_never_given_is_null(context: Context) -> None:
    assert view(context, "billing", "mary")["billing"] is None


def test_users_are_listed_to_those_who_have_the_right(context: Context) -> None:
    seen = view(context, "users", "john")

    shown = [(row["user_id"], row["name"], row["role"], row["owner"]) for row in seen["rows"]]
    assert shown == [
        ("john", "John", "admin", "john"),
        ("mary", "Mary", "member", "mary"),
        ("peter", "Peter", "member", "john"),
    ]


def test_users_are_not_listed_to_those_who_lack_the_right(context: Context) -> None:
    seen = view(context, "users", "peter")

    assert (seen["status"], seen["reason"]) == ("refused", "not_permitted")
    assert seen["rows"] is None


def test_an_answer_can_be_read_back_by_everybody_in_the_pool(context: Context) -> None:
    share(context.database, "mary", "john")
    sent = answer(context, "email.send", email_job(sender="peter"))

    shown = [view(context, "message", viewer, job_id="job-1") for viewer in ("peter", "john", "mary")]

    assert shown == [sent, sent, sent]
    assert {"job_id", "status", "reason", "detail", "kind", "sender", "paid_by", "credits", "attempts"} <= sent.keys()


def test_senders_can_read_their_answers_back_after_they_left_the_pool(context: Context) -> None:
    sent = answer(context, "email.send", email_job(sender="peter"))
    share(context.database, "peter", "peter")

    assert view(context, "message", "peter", job_id="job-1") == sent


def test_a_message_of_another_pool_is_not_shown(context: Context) -> None:
    answer(context, "email.send", email_job(sender="peter"))

    seen = view(context, "message", "mary", job_id="job-1")

    assert (seen["status"], seen["reason"]) == ("refused", "not_permitted")
    assert seen["paid_by"] is None


def test_a_message_of_another_organization_is_not_found(context: Context) -> None:
    answer(context, "email.send", email_job(sender="peter"))

    theirs = view(context, "message", "olga", job_id="job-1")
    none = view(context, "message", "olga", job_id="job-2")

    assert theirs["reason"] == none["reason"] == "not_found"
    assert theirs["detail"].replace("job-1", "job-2") == none["detail"]


def test_a_refusal_can_be_read_back_by_the_sender_and_the_owner(context: Context) -> None:
    refused = answer(context, "email.send", email_job(sender="peter", to=[f"u{n}@x.test" for n in range(50)]))

    shown = [view(context, "message", viewer, job_id="job-1") for viewer in ("peter", "john")]

    assert shown == [refused, refused]
    assert view(context, "message", "mary", job_id="job-1")["reason"] == "not_permitted"


def test_an_answer_shows_neither_the_text_nor_the_recipients(context: Context) -> None:
    context = make_context(context.database, email=FakeCarrier(NOT_NOW))
    answer(context, "email.send", email_job(subject="Secret subject", text="Secret text"))

    shown = str(view(context, "message", "john", job_id="job-1"))

    assert "Secret" not in shown
    assert "ada@example.test" not in shown


@pytest.mark.parametrize("what", VIEWS)
def test_an_unknown_viewer_is_refused(context: Context, what: str) -> None:
    given = {"viewer": "nobody", **({"job_id": "job-1"} if what in OF_A_JOB else {})}

    seen = answer(context, what, given)

    assert (seen["status"], seen["reason"]) == ("refused", "unknown_user")


@pytest.mark.parametrize("what", VIEWS)
def test_a_user_sees_nothing_of_another_organization(context: Context, what: str) -> None:
    spend(context)
    given = {"viewer": "olga", **({"job_id": "p-email"} if what in OF_A_JOB else {})}

    shown = str(answer(context, what, given))

    assert not any(name in shown for name in ("john", "peter", "mary"))


@pytest.mark.parametrize("what", VIEWS)
def test_a_view_that_takes_too_long_is_refused_with_what_to_do(stocked_postgres: Database, what: str) -> None:
    """At once, and not tried again: here something else holds a table that every view reads."""
    context = make_context(stocked_postgres)
    event.listen(stocked_postgres.engine, "begin", lambda begun: begun.exec_driver_sql(
        "SET LOCAL statement_timeout = '50ms'"))  # fmt: skip
    with psycopg.connect(plain_url(stocked_postgres)) as other:
        other.execute("LOCK TABLE users")
        # Only until the view is given up, since its refusal is stored under the viewer's organization.
        event.listen(stocked_postgres.engine, "handle_error", lambda _: other.rollback())

        seen = answer(context, what, {"viewer": "john", **({"job_id": "j"} if what in OF_A_JOB else {})})

    assert (seen["status"], seen["reason"]) == ("refused", "too_large")
    assert "ask for a shorter time" in seen["detail"]


def plain_url(database: Database) -> str:
    return database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


def test_a_snapshot_does_not_see_what_is_written_meanwhile(context: Context) -> None:
    """The totals and the rows of an answer come from several statements, and show the same moment."""
    with context.database.snapshot() as connection:
        query = "SELECT available FROM accounts WHERE owner_id = 'john' AND kind = 'email'"
        before = connection.exec_driver_sql(query).scalar_one()
        buy(context.database, "john", email=1)

        assert connection.exec_driver_sql(query).scalar_one() == before
