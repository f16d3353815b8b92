"""Organizations: ids mean something only within one, strangers have none, and nothing of one is seen in another."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from models.database.engine import Database
from models.database.schema import charges, owner_changes
from models.sends.charges import JobKey, find_charges
from models.sends.charging import charge_jobs
from models.users.organizations import NOBODYS
from tests.factories import ACME, OTHER, balance, buy, email_job, purchase_order, share, sms_job
from tests.fakes import NOON, FakeCarrier, answer, make_context
from tests.integration.ledger_steps import LEASE_END, bulk_email, charge, charge_bulk, email
from tests.integration.sending import bulk_job, read_back
from tests.integration.stored import entries_of, findings


@pytest.fixture
def of_both(stocked: Database) -> Database:
    """Give a database in which olga of `other` owns 5 email credits, beside the 10 of john of `acme`."""
    buy(stocked, "olga", email=5)
    return stocked


def nora(**fields: Any) -> dict[str, Any]:
    """Give the object that saves nora, who is a stranger before."""
    saved = {"user_id": "nora", "organization": "acme", "name": "Nora", "email": "nora@acme.test", "role": "member"}
    return {**saved, **fields}


def keys_of(database: Database) -> dict[JobKey, str]:
    """Give the keys of all charges, each with its sender."""
    with database.snapshot() as connection:
        rows = connection.execute(select(charges.c.org_id, charges.c.job_id, charges.c.sender))
        return {JobKey(org_id, job_id): sender for org_id, job_id, sender in rows}


# -- one id in two organizations --------------------------------------------------------------------------------------


def test_one_id_in_two_organizations_is_two_jobs(of_both: Database) -> None:
    carrier = FakeCarrier()
    context = make_context(of_both, email=carrier)

    johns = answer(context, "email.send", email_job())
    olgas = answer(context, "email.send", email_job(sender="olga", subject="Other"))

    assert [answered["paid_by"] for answered in (johns, olgas)] == ["john", "olga"]
    assert len(carrier.messages) == 2
    assert read_back(context, viewer="peter") == johns
    assert read_back(context, viewer="olga") == olgas
    assert findings(of_both) == []


def test_one_id_in_two_organizations_in_one_batch_is_two_jobs(of_both: Database) -> None:
    batch = [email(), email(sender="olga", credits_=2), email(), email(sender="nobody"), email(sender="nora")]

    made = charge(of_both, *batch)
    again = charge(of_both, *batch, lease_id="second")

    assert [(one.org_id, one.sender, one.is_new) for one in made] == [
        (ACME, "john", True), (OTHER, "olga", True), (ACME, "john", False),
        (NOBODYS, "nobody", False), (NOBODYS, "nora", False),
    ]  # fmt: skip
    assert [(one.state, one.payer, one.is_new) for one in again] == [(one.state, one.payer, False) for one in made]
    assert entries_of(of_both, "john")[1:] == [(2, -1, 9, "charge:job-1")]
    assert entries_of(of_both, "olga")[1:] == [(2, -2, 3, "charge:job-1")]
    assert findings(of_both) == []


def test_one_bulk_id_in_two_organizations_is_two_jobs(of_both: Database) -> None:
    first = charge_bulk(of_both, *bulk_email(1, 3))
    second = charge_bulk(of_both, *bulk_email(1, 2, sender="olga"))

    assert (first.is_new, second.is_new) == (True, True)
    assert (balance(of_both, "john"), balance(of_both, "olga")) == (7, 3)
    assert findings(of_both) == []


def test_one_order_id_and_one_change_id_in_two_organizations_are_two(of_both: Database) -> None:
    context = make_context(of_both)
    for buyer in ("john", "olga"):
        assert answer(context, "credits.purchase", purchase_order("order-1", buyer, sms=2))["status"] == "done"
        change = {"change_id": "change-1", "actor": buyer, "user": buyer, "owner": buyer}
        answered = answer(context, "credits.set_owner", change)
        # John's credits are used by peter, which hinders nothing: he only confirms that they are his own.
        assert answered["status"] == "done", answered

    assert (balance(of_both, "john", "sms"), balance(of_both, "olga", "sms")) == (12, 2)
    assert findings(of_both) == []


def test_a_batch_pays_what_each_account_can_afford(of_both: Database) -> None:
    """Several accounts of two organizations, of which some can pay for a part."""
    buy(of_both, "mary", email=2)
    costs = {"john": [4, 7, 6], "olga": [5, 1], "mary": [3], "peter": [1]}
    batch = [
        email(f"{sender}-{number}", cost, sender=sender)
        for sender, its_costs in costs.items()
        for number, cost in enumerate(its_costs)
    ]

    made = charge(of_both, *batch)

    assert [one.job_id for one in made if one.is_new] == ["john-0", "john-2", "olga-0"]
    assert {one.reason for one in made if not one.is_new} == {"insufficient_credits"}
    assert entries_of(of_both, "john")[1:] == [(2, -10, 0, "charge:john-0+john-2")]
    assert entries_of(of_both, "olga")[1:] == [(2, -5, 0, "charge:olga-0")]
    assert entries_of(of_both, "mary")[1:] == []
    assert findings(of_both) == []
    with of_both.snapshot() as connection:
        stored = find_charges(connection, [one.key for one in made])
    assert [stored[one.key].state for one in made] == [one.state for one in made]


# -- strangers --------------------------------------------------------------------------------------------------------


def test_a_stranger_cannot_take_or_probe_an_id(of_both: Database) -> None:
    """Neither the refusal of a stranger nor its absence depends on who else uses the id."""
    context = make_context(of_both)
    first = answer(context, "email.send", email_job(sender="nobody"))
    answer(context, "email.send", email_job())

    free = answer(context, "email.send", email_job("free", "nora"))
    taken = answer(context, "email.send", email_job("job-1", "nora", subject="Other"))

    assert first["reason"] == free["reason"] == "unknown_user"
    assert {**taken, "job_id": "free"} == free
    assert read_back(context)["status"] == "sent"


def test_a_stranger_gets_the_first_answer_again(of_both: Database) -> None:
    context = make_context(of_both)
    clock: Any = context.now
    answers = []
    for task, job in (("email.send", email_job(sender="nobody")), ("email.send_many", bulk_job(sender="nobody"))):
        for _ in range(2):
            answers.append(answer(context, task, job))
            clock.forward(timedelta(minutes=1))
        answers.append(answer(context, task, {**job, "subject": "Other"}))

    assert answers[0] == answers[1]
    assert answers[3] == answers[4]
    assert [answered["reason"] for answered in answers[2::3]] == ["conflicting_job", "conflicting_job"]


def test_a_refusal_stays_when_the_stranger_is_saved(of_both: Database) -> None:
    """A refused job is terminal for its id, whoever its sender becomes."""
    context = make_context(of_both)
    refused = answer(context, "email.send", email_job("early", "nora"))
    answer(context, "email.send_many", bulk_job("early-bulk", sender="nora"))
    answer(context, "email.send", email_job("early", "olga"))

    answer(context, "users.save", nora())
    share(of_both, "nora", "john")

    assert answer(context, "email.send", email_job("early", "nora")) == refused
    assert read_back(context, "early", viewer="nora") == refused
    assert read_back(context, "early", viewer="olga")["status"] == "sent"
    assert keys_of(of_both) == {
        JobKey(ACME, "early"): "nora", JobKey(ACME, "early-bulk"): "nora", JobKey(OTHER, "early"): "olga",
    }  # fmt: skip
    assert findings(of_both) == []


def test_a_refusal_under_an_id_that_is_taken_there_is_left_where_it_is(of_both: Database) -> None:
    context = make_context(of_both)
    answer(context, "email.send", email_job("taken", "nora"))
    sent = answer(context, "email.send", email_job("taken"))

    answer(context, "users.save", nora())

    assert read_back(context, "taken") == sent
    assert keys_of(of_both) == {JobKey(ACME, "taken"): "john", JobKey(NOBODYS, "taken"): "nora"}


def test_a_refusal_that_is_written_while_the_stranger_is_saved_is_found_too(stocked_postgres: Database) -> None:
    """Whoever saves a user waits for charges that have not seen them."""
    context = make_context(stocked_postgres)
    saving = threading.Thread(target=lambda: answer(context, "users.save", nora()))
    with stocked_postgres.engine.begin() as connection:
        charge_jobs(connection, [email("meanwhile", sender="nora")], lease_id="h", now=NOON, lease_until=LEASE_END)
        saving.start()
        saving.join(timeout=0.5)
        assert saving.is_alive()
    saving.join(timeout=30)

    assert keys_of(stocked_postgres) == {JobKey(ACME, "meanwhile"): "nora"}


# -- rights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [
    {"user": "nobody", "owner": "john"},
    {"user": "mary", "owner": "olga"},
    {"user": "olga", "owner": "nobody"},
    {"user": "john", "owner": "mary"},
    {"user": "mary", "owner": "peter"},
    {"change_id": "known"},
])  # fmt: skip
def test_somebody_without_rights_learns_nothing(of_both: Database, change: dict[str, str]) -> None:
    """The answer is the same, whoever and whatever is there."""
    context = make_context(of_both)
    known = {"change_id": "known", "actor": "john", "user": "mary", "owner": "john"}
    assert answer(context, "credits.set_owner", known)["status"] == "done"
    usual = answer(context, "credits.set_owner", {**known, "change_id": "c", "actor": "peter"})

    answered = answer(context, "credits.set_owner", {**known, "change_id": "c", "actor": "peter", **change})

    assert usual["reason"] == "not_permitted"
    asked = {"change_id", "user", "owner"}  # an answer repeats what was asked
    assert {name: value for name, value in answered.items() if name not in asked} == {
        name: value for name, value in usual.items() if name not in asked
    }
    with of_both.snapshot() as connection:
        assert "c" not in connection.execute(select(owner_changes.c.change_id)).scalars().all()


def test_a_charge_names_which_owner_paid(stocked: Database) -> None:
    versions = []
    for number, owner in enumerate(("peter", "mary", "john")):
        share(stocked, "peter", owner)
        buy(stocked, owner, email=1)
        [made] = charge(stocked, email(f"job-{number}", sender="peter"), lease_id=f"lease-{number}")
        with stocked.snapshot() as connection:
            is_it = charges.c.org_id == ACME, charges.c.job_id == f"job-{number}"
            version = connection.execute(select(charges.c.owner_version).where(*is_it)).scalar_one()
            change = owner_changes.c.user_id == "peter", owner_changes.c.version == version
            named = connection.execute(select(owner_changes.c.new_owner_id).where(*change)).scalar_one()
        versions.append(version)
        assert made.payer == named == owner

    assert versions == [2, 3, 4]
    assert findings(stocked) == []


def test_text_messages_of_two_organizations_under_one_id_are_two(of_both: Database) -> None:
    buy(of_both, "olga", sms=1)
    context = make_context(of_both)

    paid = [answer(context, "sms.send", sms_job(sender=sender))["paid_by"] for sender in ("john", "olga")]

    assert paid == ["john", "olga"]
