"""What people may look at: pools, reminders, their own, and what is nobody else's business."""

from datetime import timedelta
from typing import Any

import pytest

from models.database.engine import Database
from models.sends.carrier import Outcome, Receipt
from tasks.context import Context, Json
from tests.factories import balance, buy, email_job, purchase_order, save_people, share, sms_job
from tests.fakes import NEVER, NOT_NOW, Clock, FakeCarrier, answer, make_context, run_enqueued

VIEWS = ["views.overview", "views.usage", "views.orders", "views.billing", "views.users", "views.message"]


@pytest.fixture
def context(database: Database) -> Context:
    """Give a context in which peter uses the credits of john, and everybody has bought something of their own.

    Peter bought before he shared. John has 10 email and 5 SMS credits, peter 7 and mary 2 email credits.
    """
    save_people(database)
    buy(database, "peter", email=7, order_id="order-peter-own")
    buy(database, "mary", email=2, order_id="order-mary")
    buy(database, "john", email=10, sms=5, order_id="order-john")
    share(database, "peter", "john")
    return make_context(database)


def view(context: Context, what: str, viewer: str, **fields: Any) -> Json:
    return answer(context, f"views.{what}", {"viewer": viewer, **fields})


def pass_time(context: Context, by: timedelta) -> None:
    clock: Any = context.now
    assert isinstance(clock, Clock)
    clock.forward(by)


def test_an_owner_sees_their_own_credits_and_no_reminder(context: Context) -> None:
    said = view(context, "overview", "john")

    assert (said["status"], said["viewer"], said["owner"]) == ("done", "john", "john")
    assert (said["sharing"], said["reminder"]) == (False, None)
    assert said["remaining"] == {"email": 10, "sms": 5}


def test_a_credit_user_sees_the_owner_s_credits_with_a_reminder(context: Context) -> None:
    said = view(context, "overview", "peter")

    assert (said["viewer"], said["owner"], said["sharing"]) == ("peter", "john", True)
    assert said["remaining"] == {"email": 10, "sms": 5}
    assert "john" in said["reminder"]


def test_a_credit_user_who_asks_for_their_own_sees_only_those(context: Context) -> None:
    said = view(context, "overview", "peter", of="self")

    assert (said["owner"], said["remaining"]) == ("peter", {"email": 7, "sms": 0})


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
    answer(context, "email.send", email_job("too-dear", sender="mary", to=[f"u{n}@x.test" for n in range(50)]))


def used(said: Json) -> list[tuple[str, str, str, int]]:
    return [(row["day"], row["user"], row["kind"], row["credits"]) for row in said["rows"]]


def test_usage_shows_the_pool_by_user_day_and_kind_to_each_of_them(context: Context) -> None:
    spend(context)

    of_john, of_peter = view(context, "usage", "john"), view(context, "usage", "peter")

    expected = [
        ("2026-01-06", "peter", "email", 2),
        ("2026-01-05", "john", "email", 1),
        ("2026-01-05", "john", "sms", 2),
    ]
    assert used(of_john) == expected
    assert used(of_peter) == expected
    assert (of_john["total"], of_peter["total"]) == ({"email": 3, "sms": 2}, {"email": 3, "sms": 2})
    assert (of_john["owner"], of_peter["owner"]) == ("john", "john")
    assert of_john["reminder"] is None
    assert "john" in of_peter["reminder"]


def test_usage_agrees_with_the_balance(context: Context) -> None:
    spend(context)

    assert 10 - view(context, "usage", "john")["total"]["email"] == balance(context.database, "john")


def test_usage_of_oneself_shows_what_the_viewer_alone_sent(context: Context) -> None:
    spend(context)

    assert used(view(context, "usage", "john", of="self")) == [
        ("2026-01-05", "john", "email", 1),
        ("2026-01-05", "john", "sms", 2),
    ]
    assert used(view(context, "usage", "peter", of="self")) == [("2026-01-06", "peter", "email", 2)]


def test_usage_by_message_gives_a_row_a_message_newest_first(context: Context) -> None:
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


def test_a_refund_takes_its_credits_out_of_usage_again(context: Context) -> None:
    partial = Receipt(Outcome.ACCEPTED, refused={"c@d.test": "550"})
    context = make_context(context.database, email=FakeCarrier(partial))

    answer(context, "email.send", email_job(to=["a@b.test", "c@d.test"]))

    assert view(context, "usage", "john")["total"] == {"email": 1, "sms": 0}


def test_a_message_that_waits_or_is_unknown_is_usage(context: Context) -> None:
    context = make_context(context.database, email=FakeCarrier(NOT_NOW))

    answer(context, "email.send", email_job())

    assert view(context, "usage", "john")["total"] == {"email": 1, "sms": 0}
    assert view(context, "usage", "john", by="message")["rows"][0]["status"] == "retrying"


def test_usage_stays_with_the_pool_that_paid_when_sharing_stops(context: Context) -> None:
    spend(context)
    share(context.database, "peter", "peter")

    assert view(context, "usage", "john")["total"] == {"email": 3, "sms": 2}
    assert view(context, "usage", "peter")["total"] == {"email": 0, "sms": 0}


def test_usage_between_two_times_counts_from_the_first_and_before_the_second(context: Context) -> None:
    spend(context)

    first_day = view(context, "usage", "john", since="2026-01-05", until="2026-01-06")
    concurrency = view(context, "usage", "john", since="2026-01-06T12:00:00Z", until="2026-01-06T12:00:01Z")
    before = view(context, "usage", "john", until="2026-01-05T12:00:00Z")

    assert first_day["total"] == {"email": 1, "sms": 2}
    assert concurrency["total"] == {"email": 2, "sms": 0}
    assert before["total"] == {"email": 0, "sms": 0}


def test_days_are_days_of_utc(context: Context) -> None:
    """What the server's or the session's own time zone is does not matter."""
    pass_time(context, timedelta(hours=11, minutes=59))
    answer(context, "email.send", email_job("late"))
    pass_time(context, timedelta(minutes=2))
    answer(context, "email.send", email_job("early"))

    days = [row["day"] for row in view(context, "usage", "john")["rows"]]

    assert days == ["2026-01-06", "2026-01-05"]


def test_the_messages_of_a_bulk_job_are_usage_and_the_bulk_job_itself_is_not(context: Context) -> None:
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


def orders_shown(said: Json) -> list[str]:
    return [row["order_id"] for row in said["rows"]]


def test_order_history_shows_the_pool_s_orders_to_each_of_them_newest_first(context: Context) -> None:
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
    }


def test_order_history_of_oneself_shows_what_the_viewer_bought(context: Context) -> None:
    pass_time(context, timedelta(days=1))
    answer(context, "credits.purchase", purchase_order("order-peter", "peter", sms=3))

    assert orders_shown(view(context, "orders", "peter", of="self")) == ["order-peter", "order-peter-own"]
    assert orders_shown(view(context, "orders", "john", of="self")) == ["order-john"]


def test_order_history_shows_nobody_s_billing_information(context: Context) -> None:
    shown = [str(view(context, "orders", viewer)) for viewer in ("john", "peter")]

    assert not any("billing" in text or "Acme Ltd" in text for text in shown)


def test_orders_from_before_sharing_are_not_the_owner_s_business(context: Context) -> None:
    assert orders_shown(view(context, "orders", "john")) == ["order-john"]


@pytest.mark.parametrize("of", ["owner", "self"])
def test_billing_information_is_the_viewer_s_own_only(context: Context, of: str) -> None:
    said = view(context, "billing", "peter", of=of)

    assert said == {"status": "done", "viewer": "peter", "billing": {"name": "Peter"}}


def test_billing_information_that_was_never_given_is_none(context: Context) -> None:
    assert view(context, "billing", "mary")["billing"] is None


def test_who_may_list_users_sees_those_of_the_organization_and_whose_credits_they_spend(context: Context) -> None:
    said = view(context, "users", "john")

    shown = [(row["user_id"], row["name"], row["role"], row["owner"]) for row in said["rows"]]
    assert shown == [
        ("john", "John", "admin", "john"),
        ("mary", "Mary", "member", "mary"),
        ("peter", "Peter", "member", "john"),
    ]


def test_who_may_not_list_users_is_refused(context: Context) -> None:
    said = view(context, "users", "peter")

    assert (said["status"], said["reason"]) == ("refused", "not_permitted")
    assert "rows" not in said


def test_an_answer_can_be_read_back_by_its_sender_its_payer_and_who_shares_the_pool(context: Context) -> None:
    share(context.database, "mary", "john")
    sent = answer(context, "email.send", email_job(sender="peter"))

    shown = [view(context, "message", viewer, job_id="job-1") for viewer in ("peter", "john", "mary")]

    assert shown == [sent, sent, sent]
    assert {"job_id", "status", "reason", "detail", "kind", "sender", "paid_by", "credits", "attempts"} <= sent.keys()


def test_a_sender_can_read_their_message_back_after_they_left_the_pool(context: Context) -> None:
    sent = answer(context, "email.send", email_job(sender="peter"))
    share(context.database, "peter", "peter")

    assert view(context, "message", "peter", job_id="job-1") == sent


def test_a_message_of_another_pool_is_not_shown(context: Context) -> None:
    answer(context, "email.send", email_job(sender="peter"))

    said = view(context, "message", "mary", job_id="job-1")

    assert (said["status"], said["reason"]) == ("refused", "not_permitted")
    assert said["paid_by"] is None


def test_a_message_of_another_organization_is_as_good_as_none(context: Context) -> None:
    answer(context, "email.send", email_job(sender="peter"))

    theirs = view(context, "message", "olga", job_id="job-1")
    none = view(context, "message", "olga", job_id="job-2")

    assert theirs["reason"] == none["reason"] == "not_found"
    assert theirs["detail"].replace("job-1", "job-2") == none["detail"]


def test_a_refused_message_can_be_read_back_by_its_sender_and_who_would_have_paid(context: Context) -> None:
    refused = answer(context, "email.send", email_job(sender="peter", to=[f"u{n}@x.test" for n in range(50)]))

    shown = [view(context, "message", viewer, job_id="job-1") for viewer in ("peter", "john")]

    assert shown == [refused, refused]
    assert view(context, "message", "mary", job_id="job-1")["reason"] == "not_permitted"


def test_no_answer_to_a_message_shows_its_text_or_its_recipients(context: Context) -> None:
    context = make_context(context.database, email=FakeCarrier(NOT_NOW))
    answer(context, "email.send", email_job(subject="Secret subject", text="Secret text"))

    shown = str(view(context, "message", "john", job_id="job-1"))

    assert "Secret" not in shown
    assert "ada@example.test" not in shown


@pytest.mark.parametrize("what", VIEWS)
def test_an_unknown_viewer_is_refused(context: Context, what: str) -> None:
    given = {"viewer": "nobody", **({"job_id": "job-1"} if what == "views.message" else {})}

    said = answer(context, what, given)

    assert (said["status"], said["reason"]) == ("refused", "unknown_user")


@pytest.mark.parametrize("what", VIEWS)
def test_a_stranger_sees_nothing_of_another_organization(context: Context, what: str) -> None:
    spend(context)
    given = {"viewer": "olga", **({"job_id": "p-email"} if what == "views.message" else {})}

    shown = str(answer(context, what, given))

    assert not any(name in shown for name in ("john", "peter", "mary"))


def test_what_is_read_in_one_go_is_one_state_of_things(context: Context) -> None:
    """Totals and rows of one answer come from several statements, and belong to the same moment."""
    with context.database.snapshot() as connection:
        query = "SELECT available FROM accounts WHERE owner_id = 'john' AND kind = 'email'"
        before = connection.exec_driver_sql(query).scalar_one()
        buy(context.database, "john", email=1)

        assert connection.exec_driver_sql(query).scalar_one() == before
