"""Users who are erased: nothing names them or those they wrote to but what invoices keep, and the money is whole."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import count
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import charges, decisions, entries, erasures, metadata, orders, refusals, users
from models.errors import Reason
from models.sends.carrier import Outcome, Receipt
from models.sends.erasure import WORDS_ERASED
from tasks import erasing, upkeep
from tasks.context import Context
from tasks.operating import decide
from tests.factories import balance, buy, email_job, share, sms_job
from tests.fakes import NOON, UNSURE, FakeCarrier, answer, make_context, run_enqueued
from tests.integration.audited import audit
from tests.integration.sending import LATER, bulk_job, pass_time, read_back, scripted_context
from tests.integration.stored import charge_of, findings, letters_of, tries_of

Json = dict[str, Any]

PRIVATE = "xyzzy"
"""A word that is in everything private that these tests say of mary and of those she wrote to, and nowhere else."""
ADA, BOB, EVE = (f"{name}@{PRIVATE}.test" for name in ("ada", "bob", "eve"))
TO = [ADA, BOB, EVE]
NOBODY_HAS = Receipt(Outcome.NEVER, f"550 5.1.1 <{ADA}>: no such user", recipients_refused=True)
TWO_REFUSED = Receipt(Outcome.ACCEPTED, refused={ADA: f"550 <{ADA}>", BOB: f"550 {BOB}"}, reference="ref-1")


def erase(context: Context, user: str = "mary", *, actor: str = "john", erasure_id: str = "erasure-1") -> Json:
    """Erase a user."""
    return answer(context, "users.erase", {"erasure_id": erasure_id, "actor": actor, "user": user})


def save_mary(context: Context, **fields: Any) -> Json:
    """Save mary with private data."""
    mary = {"user_id": "mary", "organization": "acme", "name": f"Mary {PRIVATE}", "email": f"mary@{PRIVATE}.test",
            "role": "member", "billing": {"name": f"Mary {PRIVATE}"}}  # fmt: skip
    return answer(context, "users.save", mary | fields)


def live(database: Database) -> Context:
    """Let mary do everything that leaves something private behind, and end all of it."""
    script = [TWO_REFUSED, NOBODY_HAS, NOBODY_HAS, UNSURE]
    context = make_context(database, email=FakeCarrier(*script), sms=FakeCarrier(NOBODY_HAS))
    assert save_mary(context)["status"] == "done"
    buy(database, "mary", email=20, sms=20, order_id="order-of-mary")
    for job_id in ("sent", "failed"):
        answer(context, "email.send", email_job(job_id, "mary", to=TO, text=PRIVATE))
    answer(context, "sms.send", sms_job("text", "mary", text=PRIVATE))
    answer(context, "email.send_many", bulk_job("bulk", 2, sender="mary", subject=PRIVATE))
    run_enqueued(context)
    answer(context, "email.send", email_job("dear", "mary", to=[f"{number}@{PRIVATE}.test" for number in range(30)]))
    answer(context, "email.send", email_job("wrong", "mary", subject=7, text=PRIVATE))
    answer(context, "credits.purchase", {"order_id": "wrong", "buyer": "mary", "billing": {"name": PRIVATE}})
    save_mary(context, role="no-such-role")
    save_mary(context, role="no-such-role", actor="john")
    decide(context, "refund", None, operator="someone", note=f"{PRIVATE} called")
    return context


def everything_stored(database: Database, *but: str) -> dict[str, str]:
    """Give each table as text, without these. Its rows are sorted: the database gives them in any order."""
    with database.snapshot() as connection:
        return {
            name: "\n".join(
                sorted(json.dumps(dict(row._mapping), default=str) for row in connection.execute(select(table)))
            )
            for name, table in metadata.tables.items()
            if name not in but
        }


def tables_with(database: Database, word: str) -> set[str]:
    """Give the tables that hold a word."""
    return {name for name, text in everything_stored(database).items() if word in text}


def rows_of(database: Database, table: Any) -> list[Any]:
    with database.snapshot() as connection:
        return list(connection.execute(select(table)).all())


def test_nothing_private_is_left_but_the_billing_information_of_orders(stocked: Database) -> None:
    buy(stocked, "mary", email=1)  # an order with other billing information
    context = live(stocked)
    buy_own = {"order_id": "own", "buyer": "mary", "credits": {"email": 1, "sms": 0}, "amount": 1, "currency": "EUR"}
    assert answer(context, "credits.purchase", buy_own)["status"] == "done"
    assert tables_with(stocked, PRIVATE) == {"users", "charges", "attempts", "dead_letters", "decisions", "orders"}

    answered = erase(context)

    assert answered == {
        "erasure_id": "erasure-1", "status": "done", "reason": None, "detail": None, "user": "mary"
    }  # fmt: skip
    assert tables_with(stocked, PRIVATE) == {"orders"}
    [mary] = [row for row in rows_of(stocked, users) if row.id == "mary"]
    assert (mary.name, mary.email, mary.billing) == ("", "", None)
    assert mary.erased_at is not None
    assert [row.note for row in rows_of(stocked, decisions)] == [None]
    assert rows_of(stocked, refusals) == []
    assert findings(stocked) == []


def test_the_ledger_and_all_that_counts_stay(stocked: Database) -> None:
    context = live(stocked)
    money = ("entries", "accounts", "orders", "organizations", "roles", "plans", "owner_changes", "usage_days")
    before, usage = everything_stored(stocked), answer(context, "views.usage", {"viewer": "john", "by": "message"})
    charge, sent = charge_of(stocked, "sent"), read_back(context, "sent", "mary")

    erase(context)

    after = everything_stored(stocked)
    assert {name: after[name] for name in money} == {name: before[name] for name in money}
    assert answer(context, "views.usage", {"viewer": "john", "by": "message"}) == usage
    erased = charge_of(stocked, "sent")
    assert erased.recipients_refused == {"recipient-1": "erased", "recipient-2": "erased"}
    assert len(erased.recipients_refused) == erased.refunded == len(sent["recipients_refused"])
    assert (erased.detail, erased.carrier_reference) == (charge.detail, "ref-1")
    assert "2 of 3 recipients were refused" in str(erased.detail)
    assert charge_of(stocked, "failed").detail == charge_of(stocked, "text").detail == WORDS_ERASED
    assert charge_of(stocked, "failed").reason == Reason.RECIPIENT_REFUSED
    assert [(one.outcome, one.detail) for one in tries_of(stocked, "failed")] == [("never", WORDS_ERASED)]


def test_what_others_sent_and_said_stays(stocked: Database) -> None:
    context = scripted_context(stocked, TWO_REFUSED)
    answer(context, "email.send", email_job("of-john", "john", to=TO))
    answer(context, "email.send", {"job_id": "wrong", "sender": "john"})
    kept = everything_stored(stocked, "users", "erasures", "changes")

    erase(context)

    assert everything_stored(stocked, "users", "erasures", "changes") == kept


def test_an_erased_user_is_in_no_list_and_can_do_nothing(stocked: Database) -> None:
    context = make_context(stocked)
    buy(stocked, "mary", email=5)
    erase(context)

    assert [row["user_id"] for row in answer(context, "views.users", {"viewer": "john"})["rows"]] == ["john", "peter"]
    for task, job in (
        *((f"views.{view}", {"viewer": "mary"}) for view in ("overview", "usage", "orders", "billing", "users")),
        ("views.message", {"viewer": "mary", "job_id": "x"}),
        ("email.send", email_job("one", "mary")),
        ("email.send_many", bulk_job("many", sender="mary")),
        ("credits.purchase", {"order_id": "o", "buyer": "mary", "plan": "small"}),
        ("credits.set_owner", {"change_id": "c1", "actor": "john", "user": "mary", "owner": "john"}),
        ("credits.set_owner", {"change_id": "c2", "actor": "john", "user": "peter", "owner": "mary"}),
    ):
        answered = answer(context, task, job)
        assert (answered["status"], answered["reason"]) == ("refused", "unknown_user"), task
        assert "erased" in answered["detail"], task
    assert balance(stocked, "mary") == 5
    assert findings(stocked) == []


def test_a_job_that_was_done_before_keeps_its_first_answer(stocked: Database) -> None:
    context = make_context(stocked)
    buy(stocked, "mary", email=5)
    job, order = email_job("one", "mary"), {"order_id": "own", "buyer": "mary", "credits": {"email": 1, "sms": 0},
                                            "amount": 1, "currency": "EUR", "billing": {"name": "M"}}  # fmt: skip
    sent, bought = answer(context, "email.send", job), answer(context, "credits.purchase", order)

    erase(context)

    assert answer(context, "email.send", job) == sent
    assert answer(context, "credits.purchase", order) == bought


def test_an_erased_actor_can_do_nothing(stocked: Database) -> None:
    context = make_context(stocked)
    save_mary(context, role="admin")
    erase(context)

    change = {"change_id": "c", "actor": "mary", "user": "peter", "owner": "peter"}
    credits_ = {"adjustment_id": "a", "actor": "mary", "owner": "peter", "credits": {"email": 1, "sms": 0}}
    assert answer(context, "credits.set_owner", change)["reason"] == "unknown_user"
    assert answer(context, "credits.adjust", credits_ | {"reason": "Goodwill."})["reason"] == "unknown_user"
    assert erase(context, "peter", actor="mary", erasure_id="e2")["reason"] == "unknown_user"


def test_nobody_is_saved_under_the_id_of_an_erased_user(stocked: Database) -> None:
    """An old save that comes late would bring back what was erased."""
    context = make_context(stocked)
    save_mary(context, version=1)
    erase(context)

    for fields in ({"version": 1}, {"version": 9}, {}):
        answered = save_mary(context, **fields)
        assert (answered["status"], answered["reason"]) == ("refused", "stale")
        assert "another id" in answered["detail"]
    assert PRIVATE not in everything_stored(stocked)["users"]


def test_the_same_erasure_gets_the_same_answer_and_changes_nothing(stocked: Database) -> None:
    context = make_context(stocked)
    first = erase(context)
    stored = everything_stored(stocked)
    pass_time(context)

    assert erase(context) == first
    assert everything_stored(stocked) == stored
    assert [(row.erasure_id, row.actor_id, row.user_id) for row in rows_of(stocked, erasures)] == [
        ("erasure-1", "john", "mary")
    ]


def test_an_erasure_that_was_interrupted_goes_on_when_it_comes_again(
    stocked: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = live(stocked)
    with monkeypatch.context() as patch:
        patch.setattr(erasing, "erase_letters_of", _crash)
        with pytest.raises(ZeroDivisionError):
            erase(context)
    assert tables_with(stocked, PRIVATE) > {"dead_letters"}

    assert erase(context)["status"] == "done"
    assert tables_with(stocked, PRIVATE) == set()


def _crash(*_: object) -> int:
    raise ZeroDivisionError


def test_everything_is_erased_in_batches(stocked: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasing, "ERASE_BATCH", 1)
    context = live(stocked)

    erase(context)

    assert tables_with(stocked, PRIVATE) == set()
    assert letters_of(stocked) == rows_of(stocked, refusals) == []


def test_what_comes_after_the_erasure_leaves_nothing_private(stocked: Database) -> None:
    """Jobs that were on a queue are refused, and neither they nor late saves are kept as dead letters."""
    context = make_context(stocked)
    erase(context)

    for task, job in (
        ("email.send", email_job("late", "mary", text=PRIVATE)),
        ("email.send", email_job("wrong", "mary", subject=7, text=PRIVATE)),
        ("email.send_many", bulk_job("bulk", sender="mary", subject=PRIVATE)),
        ("credits.purchase", {"order_id": "o", "buyer": "mary", "plan": "p", "billing": {"name": PRIVATE}}),
    ):
        assert answer(context, task, job)["status"] == "refused", task
    assert save_mary(context)["reason"] == save_mary(context, actor="john")["reason"] == "stale"

    assert tables_with(stocked, PRIVATE) == set()
    assert letters_of(stocked) == []


def test_an_erased_user_may_be_erased_again(stocked: Database) -> None:
    """What a person puts under another id is an erasure of its own, which finds nothing more."""
    context = make_context(stocked)
    erase(context)
    stored = everything_stored(stocked, "erasures", "changes")
    pass_time(context)

    assert erase(context, erasure_id="erasure-2")["status"] == "done"

    assert everything_stored(stocked, "erasures", "changes") == stored
    assert [row.erasure_id for row in rows_of(stocked, erasures)] == ["erasure-1", "erasure-2"]


def test_erasures_at_the_same_time_are_all_done_and_each_id_once(stocked: Database) -> None:
    """Saves at the same time come before them or not at all."""
    context = live(stocked)
    together = Barrier(8)

    def erase_or_save(number: int) -> Json:
        together.wait(30)
        return erase(context, erasure_id=f"erasure-{number % 3}") if number < 6 else save_mary(context)

    with ThreadPoolExecutor(8) as threads:
        *erased, saved, saved_too = threads.map(erase_or_save, range(8))

    assert {each["status"] for each in erased} == {"done"}
    assert {saved["reason"], saved_too["reason"]} <= {None, "stale"}
    assert sorted(row.erasure_id for row in rows_of(stocked, erasures)) == ["erasure-0", "erasure-1", "erasure-2"]
    assert tables_with(stocked, PRIVATE) == set()
    assert findings(stocked) == []


def test_audits_find_nothing_after_an_erasure_and_after_retention(stocked: Database) -> None:
    """The next audit and one of the whole history, as workers make them, with hashes, triggers and constraints."""
    context = live(stocked)
    answer(scripted_context(stocked, TWO_REFUSED), "email.send", email_job("of-john", to=TO))
    assert audit(stocked).findings == []

    erase(context)
    assert audit(stocked, NOON + LATER).findings == []
    pass_time(context, timedelta(days=91))
    assert upkeep.sweep(context)["erased"] == 1
    upkeep.roll_up(context)

    after = NOON + timedelta(days=91)
    assert tables_with(stocked, PRIVATE) == set()
    assert audit(stocked, after).findings == []
    assert audit(stocked, after, whole=True).findings == []


def test_a_bank_may_take_back_what_an_erased_user_has_bought(stocked: Database) -> None:
    context = make_context(stocked)
    buy(stocked, "mary", email=5, order_id="order-of-mary")
    erase(context)
    chargeback = {"reversal_id": "r-1", "order_id": "order-of-mary", "kind": "chargeback", "reason": "Bank."}

    assert answer(context, "credits.reverse", chargeback)["status"] == "done"

    assert balance(stocked, "mary") == 0
    assert findings(stocked) == []


def test_an_actor_may_erase_themself_once(stocked: Database) -> None:
    context = make_context(stocked)
    save_mary(context, role="admin")

    first = erase(context, "mary", actor="mary")

    assert first["status"] == "done"
    assert erase(context, "mary", actor="mary") == first
    assert erase(context, "mary", actor="mary", erasure_id="e2")["reason"] == "unknown_user"


def test_who_was_erased_is_shown_with_the_actor(stocked: Database) -> None:
    context = make_context(stocked)
    erase(context)

    row = answer(context, "views.changes", {"viewer": "john"})["rows"][0]

    assert (row["kind"], row["subject"], row["actor"]) == ("erasure", "mary", "john")
    assert (row["old"], row["new"]) == (None, {"erasure_id": "erasure-1"})


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "actor", "reason"),
    [
        ("mary", "nobody", "unknown_user"),
        ("nobody", "john", "unknown_user"),
        ("olga", "john", "unknown_user"),
        ("mary", "olga", "unknown_user"),
        ("mary", "peter", "not_permitted"),
        ("nobody", "peter", "not_permitted"),
        ("olga", "peter", "not_permitted"),
        ("john", "john", "user_has_credit_users"),
    ],
)
def test_an_erasure_that_may_not_be_is_refused_and_changes_nothing(
    stocked: Database, user: str, actor: str, reason: str
) -> None:
    context = make_context(stocked)
    before = everything_stored(stocked, "refusals", "dead_letters")

    answered = erase(context, user, actor=actor)

    assert (answered["status"], answered["reason"]) == ("refused", reason)
    assert everything_stored(stocked, "refusals", "dead_letters") == before


def test_a_stranger_of_another_organization_is_as_unknown_as_nobody(stocked: Database) -> None:
    context = make_context(stocked)

    stranger, nobody = erase(context, "olga"), erase(context, "nobody")

    assert stranger["detail"].replace("olga", "nobody") == nobody["detail"]


def test_an_id_of_another_erasure_is_a_conflict_for_those_who_may_erase(stocked: Database) -> None:
    context = make_context(stocked)
    erase(context)

    assert erase(context, "peter")["reason"] == "conflicting_job"
    assert erase(context, "peter", actor="peter")["reason"] == "not_permitted"
    assert erase(context, "olga", actor="olga")["status"] == "done", "the id is another organization's"


@pytest.mark.parametrize("script", [Receipt(Outcome.NOT_NOW, "421"), UNSURE, ZeroDivisionError()],
                         ids=["waiting", "unknown", "sending"])  # fmt: skip
def test_a_user_whose_messages_have_not_ended_is_not_erased(stocked: Database, script: Any) -> None:
    """They are still owed, and would go out under the user's name."""
    context = scripted_context(stocked, script)
    buy(stocked, "mary", email=5)
    try:
        answer(context, "email.send", email_job("one", "mary", text=PRIVATE))
    except ZeroDivisionError:
        assert charge_of(stocked, "one").state == "sending"

    answered = erase(context)

    assert (answered["status"], answered["reason"]) == ("refused", "user_has_open_messages")
    assert charge_of(stocked, "one").content is not None
    assert erase(context, "peter")["status"] == "done", "nothing of peter is open"


def test_a_bulk_job_that_was_not_begun_is_open_and_the_erasure_may_come_again(stocked: Database) -> None:
    context = make_context(stocked)
    buy(stocked, "mary", email=5)
    answer(context, "email.send_many", bulk_job(sender="mary"))
    assert erase(context)["reason"] == "user_has_open_messages"

    run_enqueued(context)

    assert erase(context)["status"] == "done"


def test_a_message_is_charged_before_the_erasure_or_not_at_all(stocked_postgres: Database) -> None:
    """Nothing is charged to a user whom an erasure has found without open messages."""
    buy(stocked_postgres, "mary", email=10_000)
    context = make_context(stocked_postgres)
    numbers = count()

    def send_until_erased(_: int) -> None:
        for number in numbers:
            if answer(context, "email.send", email_job(f"job-{number}", "mary"))["reason"] == "unknown_user":
                return

    def erase_at_last() -> int:
        return next(tries for tries in range(1, 10_000) if erase(context)["status"] == "done")

    with ThreadPoolExecutor(5) as threads:
        sending = [threads.submit(send_until_erased, thread) for thread in range(4)]
        assert threads.submit(erase_at_last).result(60) >= 1
        for each in sending:
            each.result(60)

    found = [row for row in rows_of(stocked_postgres, charges) if row.sender == "mary"]
    assert {(row.state, row.reason) for row in found} <= {("sent", None), ("refused", "unknown_user")}
    assert sum(row.state == "refused" for row in found) == 4
    assert balance(stocked_postgres, "mary") == 10_000 - sum(row.state == "sent" for row in found)
    assert findings(stocked_postgres) == []


def test_an_erased_credit_user_can_be_set_back_so_that_the_owner_is_free(stocked: Database) -> None:
    share(stocked, "peter", "john")
    context = make_context(stocked)
    save_mary(context, role="admin")
    erase(context, "peter")
    assert erase(context, "john", actor="mary", erasure_id="e2")["reason"] == "user_has_credit_users"

    change = {"change_id": "c", "actor": "mary", "user": "peter", "owner": "peter"}
    assert answer(context, "credits.set_owner", change)["status"] == "done"

    assert erase(context, "john", actor="mary", erasure_id="e2")["status"] == "done"
    assert findings(stocked) == []


def test_the_ledger_stays_chained(stocked: Database) -> None:
    context = live(stocked)
    before = [(row.seq, row.hash) for row in rows_of(stocked, entries)]

    erase(context)

    assert [(row.seq, row.hash) for row in rows_of(stocked, entries)] == before
    assert {row.billing["name"] for row in rows_of(stocked, orders) if row.buyer_id == "mary"} == {"Acme Ltd"}
