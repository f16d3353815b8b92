"""What audits find of reversals, adjustments and debts that were tampered with."""

from datetime import timedelta

import pytest

from models.database.engine import Database
from models.reports.findings import Finding
from tests.factories import buy, email_job, save_people
from tests.fakes import NOON, Clock, answer, make_context
from tests.integration.audited import audit, damage
from tests.integration.faults import DEBTS, ORDERS
from tests.integration.stored import findings
from tests.integration.templates import database_filled_by

OWED = "An account holds what its last entry says"
CORRECTIONS = "Each correction has its entries"
CAUSES = "Each entry moves what it was made for, and has its content"
EVENING = NOON + timedelta(hours=9)


def correct_in_every_way(database: Database) -> None:
    """Let john owe 4 of the 10 credits that he bought, then pay 3 of them, and get 2 by hand; an audit comes first."""
    save_people(database)
    clock = Clock()
    context = make_context(database, clock=clock)
    rights = ["view_user_list", "edit_user", "adjust_credits"]
    answer(context, "roles.save", {"organization": "acme", "role": "admin", "rights": rights})
    buy(database, "mary", email=5, order_id="of-mary")
    assert audit(database, clock()).findings == []
    clock.forward(timedelta(hours=1))
    buy(database, "john", email=10, sms=2, order_id="order-1", now=clock())
    for number in range(4):
        answer(context, "email.send", email_job(f"job-{number}"))
    reversal = {"reversal_id": "reversal-1", "order_id": "order-1", "kind": "refund", "reason": "So."}
    answer(context, "credits.reverse", {**reversal, "credits": {"email": 1}})
    answer(context, "credits.reverse", {**reversal, "reversal_id": "reversal-2"})
    buy(database, "john", email=3, order_id="order-2", now=clock())
    adjustment = {"adjustment_id": "adjustment-1", "actor": "john", "owner": "john", "credits": {"email": 2}}
    answer(context, "credits.adjust", {**adjustment, "reason": "So."})


corrected = database_filled_by(correct_in_every_way)

JOHNS = "account_id = (SELECT id FROM accounts WHERE owner_id = 'john' AND kind = 'email')"
MARYS = "(SELECT id FROM accounts WHERE owner_id = 'mary' AND kind = 'email')"


def test_an_audit_finds_nothing_to_correct_after_corrections(corrected: Database) -> None:
    assert findings(corrected, EVENING) == []


BREAKING = [
    (OWED, "UPDATE accounts SET debt = debt - 1 WHERE owner_id = 'john' AND kind = 'email'"),
    (OWED, "UPDATE accounts SET debt = 3 WHERE owner_id = 'john' AND kind = 'sms'"),
    (DEBTS, f"UPDATE entries SET debt_after = debt_after + 1 WHERE cause_kind = 'adjustment' AND {JOHNS}"),
    # Too much of it was taken from the balance, as if nothing had been spent.
    (DEBTS, f"UPDATE entries SET debt_after = 0, amount = -9 WHERE cause_id = 'reversal-2' AND {JOHNS}"),
    # The purchase was all added to the balance, and paid nothing.
    (DEBTS, f"UPDATE entries SET debt_after = 4, amount = 3 WHERE cause_id = 'order-2' AND {JOHNS}"),
    (DEBTS, "UPDATE reversals SET email_debt = email_debt - 1 WHERE reversal_id = 'reversal-2'"),
    # Something was left that could have been taken.
    (DEBTS, f"UPDATE entries SET balance_after = 1 WHERE cause_id = 'reversal-2' AND {JOHNS}"),
    (DEBTS, "DELETE FROM reversals WHERE reversal_id = 'reversal-2'"),
    (CORRECTIONS, f"DELETE FROM entries WHERE cause_id = 'reversal-1' AND {JOHNS}"),
    (CORRECTIONS, f"UPDATE entries SET account_id = {MARYS}, seq = 2 WHERE cause_id = 'reversal-1' AND {JOHNS}"),
    (CAUSES, "UPDATE reversals SET order_id = 'of-mary' WHERE reversal_id = 'reversal-1'"),
    (CORRECTIONS, f"DELETE FROM entries WHERE cause_id = 'adjustment-1' AND {JOHNS}"),
    (CORRECTIONS, "UPDATE adjustments SET owner_id = 'mary' WHERE adjustment_id = 'adjustment-1'"),
    (CORRECTIONS, "UPDATE adjustments SET sms = 7 WHERE adjustment_id = 'adjustment-1'"),
    (ORDERS, "UPDATE reversals SET email = email + 1 WHERE reversal_id = 'reversal-2'"),
    (ORDERS, "UPDATE orders SET sms = 1 WHERE order_id = 'order-1'"),
]


@pytest.mark.parametrize(("invariant", "statement"), BREAKING)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "new"])
def test_what_was_tampered_with_is_found(corrected: Database, invariant: str, statement: str, *, whole: bool) -> None:
    damage(corrected, statement)

    found: list[Finding] = audit(corrected, EVENING, whole=whole).findings

    assert invariant in {finding.invariant for finding in found}
