"""Views that are refused: whoever polls writes nothing, so that asking again and again cannot fill the disk."""

from typing import Any

import pytest
from sqlalchemy import func, select

from models.database.engine import Database
from models.database.schema import metadata
from tests.factories import email_job
from tests.fakes import answer, make_context

Json = dict[str, Any]

VIEWS = ("overview", "usage", "orders", "billing", "users", "changes", "message", "explain")


def row_counts(database: Database) -> dict[str, int]:
    """Give how many rows each table has."""
    with database.snapshot() as connection:
        return {
            name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for name, table in metadata.tables.items()
        }


POLLS: list[tuple[str, Any, str]] = [
    ("views.message", {"viewer": "john", "job_id": "no-such-job"}, "not_found"),
    ("views.message", {"viewer": "olga", "job_id": "job-1"}, "not_found"),
    ("views.message", {"viewer": "mary", "job_id": "job-1"}, "not_permitted"),
    ("views.message", {"viewer": "nobody", "job_id": "job-1"}, "unknown_user"),
    ("views.explain", {"viewer": "john", "job_id": "no-such-job"}, "not_found"),
    ("views.explain", {"viewer": "olga", "job_id": "job-1"}, "not_found"),
    ("views.explain", {"viewer": "mary", "job_id": "job-1"}, "not_permitted"),
    ("views.explain", {"viewer": "nobody", "job_id": "job-1"}, "unknown_user"),
    ("views.users", {"viewer": "mary"}, "not_permitted"),
    ("views.changes", {"viewer": "mary"}, "not_permitted"),
    ("views.orders", {"viewer": "john", "next": "no cursor"}, "invalid_job"),
    *((f"views.{view}", {"viewer": "nobody", "job_id": "x"}, "invalid_job") for view in VIEWS[:-2]),
    *((f"views.{view}", {"viewer": "no id"}, "invalid_job") for view in VIEWS),
    *((f"views.{view}", None, "invalid_job") for view in VIEWS),
]


@pytest.mark.parametrize(("task", "given", "reason"), POLLS)
def test_a_refused_view_writes_nothing(stocked: Database, task: str, given: Any, reason: str) -> None:
    context = make_context(stocked)
    answer(context, "email.send", email_job())
    before = row_counts(stocked)

    answered = answer(context, task, given)

    assert (answered["status"], answered["reason"]) == ("refused", reason)
    assert row_counts(stocked) == before


def test_any_other_refusal_is_still_recorded(stocked: Database) -> None:
    context = make_context(stocked)
    before = row_counts(stocked)

    answer(context, "credits.purchase", {"order_id": "order-1"})

    assert row_counts(stocked) == before | {"refusals": 1, "dead_letters": 1}
