"""Long lists in pages: rows that come and go between two pages make none be skipped, and none appear twice."""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import Connection, delete, insert, update

from models.database import paging
from models.database.engine import Database
from models.database.schema import changes, charges, dead_letters, orders, users
from models.errors import Refused
from models.messages.base import Json
from models.messages.views import View, ViewChanges, ViewUsage
from models.reports import views
from models.reports.changes import show_changes
from models.sends.dead_letters import list_letters
from models.sends.unknown import list_unknown
from tasks import upkeep
from tasks.context import Context
from tests.factories import ACME, BILLING, buy, email_job, purchase_order, stock
from tests.fakes import NOON, answer, make_context
from tests.integration.history import SENT, analyze, rows_read, write_sent_emails
from tests.integration.sending import pass_time
from tests.integration.templates import database_filled_by

Row = tuple[str, int]
"""A name, and how many days it is old."""
Shown = tuple[list[str], str | None]
"""The names on a page, and the cursor of the next one."""


@dataclass(frozen=True)
class Paged:
    """A list that comes in pages: how its rows come, how they go (if they can), and how a page is read."""

    come: Callable[[Connection, Sequence[Row]], None]
    read: Callable[[Connection, str | None], Shown]
    go: Callable[[Connection, str], None] | None = None


def _of_view(show: Callable[..., Json], view: type[View], name: str, **fields: Any) -> Callable[..., Shown]:
    def read(connection: Connection, cursor: str | None) -> Shown:
        shown = show(connection, view(viewer="john", next=cursor, **fields))
        return [row[name] for row in shown["rows"]], shown["next"]

    return read


def _of_list(listed: Callable[..., tuple[list[Json], str | None]], name: str) -> Callable[..., Shown]:
    def read(connection: Connection, cursor: str | None) -> Shown:
        rows, following = listed(connection, cursor=cursor)
        return [row[name] for row in rows], following

    return read


def _order(connection: Connection, rows: Sequence[Row]) -> None:
    order = {"org_id": ACME, "digest": "d", "buyer_id": "john", "owner_id": "john", "owner_version": 0, "email": 1,
             "sms": 0, "amount": 1, "currency": "EUR", "billing": BILLING}  # fmt: skip
    connection.execute(insert(orders), [{**order, "order_id": name, "at": _at(age)} for name, age in rows])


def _save(connection: Connection, rows: Sequence[Row]) -> None:
    user = {"org_id": ACME, "name": "N", "email": "n@x.test", "role": "admin", "is_owner": True, "owner_version": 0,
            "created_at": NOON}  # fmt: skip
    connection.execute(insert(users), [{**user, "id": name, "credit_owner_id": name} for name, _ in rows])


def _charge(connection: Connection, rows: Sequence[Row], **fields: Any) -> None:
    charge = {**SENT, "org_id": ACME, "account_id": 1, "sender": "john", "owner_version": 0, **fields}
    connection.execute(
        insert(charges),
        [
            {"final_at": _at(age), **charge, "job_id": name, "charged_by": name, "created_at": _at(age)}
            for name, age in rows
        ],
    )


def _leave_unknown(connection: Connection, rows: Sequence[Row]) -> None:
    for name, age in rows:
        doubt = {"unknown_since": _at(age), "handover_started_at": _at(age), "final_at": None, "content": {}}
        _charge(connection, [(name, age)], **{**doubt, "state": "unknown"})


def _settle(connection: Connection, name: str) -> None:
    final = {"state": "sent", "unknown_since": None, "handover_started_at": None, "content": None, "final_at": NOON}
    connection.execute(update(charges).where(charges.c.job_id == name).values(**final))


def _bury(connection: Connection, rows: Sequence[Row]) -> None:
    letter = {"org_id": ACME, "task": "email.send", "status": "refused", "detail": "Words.", "job": {}}
    values = [{**letter, "key": name, "digest": name.rjust(64, "0"), "at": _at(age)} for name, age in rows]
    connection.execute(insert(dead_letters), values)


def _erase(connection: Connection, name: str) -> None:
    connection.execute(delete(dead_letters).where(dead_letters.c.key == name))


def _change(connection: Connection, rows: Sequence[Row]) -> None:
    change = {"org_id": ACME, "kind": "user", "actor": "john", "old": None, "new": {}}
    connection.execute(
        insert(changes), [{**change, "id": f"{9 - age}-{name}", "subject": name, "at": _at(age)} for name, age in rows]
    )


def _read_changes(connection: Connection, cursor: str | None) -> Shown:
    shown = show_changes(connection, ViewChanges(viewer="john", next=cursor))
    return [row["subject"] if row["kind"] == "user" else str(row) for row in shown["rows"]], shown["next"]


def _at(age: int) -> Any:
    return NOON - timedelta(days=age)


LISTS = {
    "orders": Paged(_order, _of_view(views.show_orders, View, "order_id")),
    "users": Paged(_save, _of_view(views.show_users, View, "user_id")),
    "messages": Paged(_charge, _of_view(views.show_usage, ViewUsage, "job_id", by="message")),
    "changes": Paged(_change, _read_changes),
    "unknown": Paged(_leave_unknown, _of_list(list_unknown, "job_id"), _settle),
    "letters": Paged(_bury, _of_list(list_letters, "key"), _erase),
}

names = st.text("abc", min_size=3, max_size=6)
some_rows = st.dictionaries(names, st.integers(0, 3), max_size=12)
"""Many are of the same day."""


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[dict[str, int], set[str]]]:
    """What comes, and what goes, before each page."""
    return draw(st.lists(st.tuples(some_rows, st.sets(names, max_size=6)), min_size=1, max_size=6))


@pytest.mark.parametrize("name", LISTS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories())
@example(history=[({f"a{n:03}": 0 for n in range(9)}, set()), ({"b": 0}, {f"a{n:03}" for n in range(9)})])
def test_what_was_there_all_the_time_is_shown_exactly_once(
    stocked: Database, monkeypatch: pytest.MonkeyPatch, name: str, history: list[tuple[dict[str, int], set[str]]]
) -> None:
    """Whatever comes and goes meanwhile. Pages are short here, so that there are many."""
    for module in (paging, views):
        monkeypatch.setattr(module, "PAGE_SIZE", 3)
    paged = LISTS[name]
    with stocked.engine.connect() as connection:  # nothing is committed
        known = there_before = always = set(read_on(paged, connection, [], None))
        shown: list[str] = []
        cursor = None
        for number, (comes, goes) in enumerate(history):
            new = [(row, age) for row, age in comes.items() if row not in known]
            if new:
                paged.come(connection, new)
            known = known | comes.keys()
            always = known if number == 0 else always
            if paged.go is not None:
                for row in goes & known - there_before:
                    paged.go(connection, row)
                always = always - goes
            page, cursor = paged.read(connection, cursor)
            shown += page
            if cursor is None:
                break
        read_on(paged, connection, shown, cursor)

    assert len(shown) == len(set(shown))
    assert always <= set(shown) <= known


def read_on(paged: Paged, connection: Connection, shown: list[str], cursor: str | None) -> list[str]:
    """Add all pages from a cursor on, or all there are, to what was shown."""
    while cursor is not None or not shown:
        page, cursor = paged.read(connection, cursor)
        shown += page
        if cursor is None:
            break
    return shown


def view(context: Context, name: str, viewer: str, **fields: Any) -> Json:
    return answer(context, f"views.{name}", {"viewer": viewer, **fields})


def test_15_orders_between_two_pages_of_orders_are_in_nobody_s_way(stocked: Database) -> None:
    """The page by its number repeats 15 of them; the one by its cursor goes on where the first one ended."""
    context = make_context(stocked)
    for number in range(150):
        answer(context, "credits.purchase", purchase_order(f"order-{number}", email=1))
        pass_time(context, timedelta(seconds=number % 2))
    first = view(context, "orders", "john")
    for number in range(15):
        answer(context, "credits.purchase", purchase_order(f"later-{number}", email=1))
    by_number = view(context, "orders", "john", page=2)
    second = view(context, "orders", "john", next=first["next"])

    shown = [row["order_id"] for page in (first, second) for row in page["rows"]]
    assert len(by_number["rows"]) == 66  # of 166: one was there before
    assert len(shown) == len(set(shown)) == 151
    assert not any(name.startswith("later") for name in shown)
    assert (first["more"], second["more"], second["next"], second["page"]) == (True, False, None, None)


def test_days_that_come_between_two_pages_are_in_nobody_s_way(stocked: Database) -> None:
    buy(stocked, "mary", email=400)
    context = make_context(stocked)

    def send_each_day(first: int, days: int) -> None:
        for number in range(first, first + days):
            answer(context, "email.send", email_job(f"day-{number}", "mary"))
            pass_time(context, timedelta(days=1))

    send_each_day(0, 150)
    first = view(context, "usage", "mary")
    upkeep.roll_up(context)
    send_each_day(150, 5)
    second = view(context, "usage", "mary", next=first["next"])

    days = [row["day"] for page in (first, second) for row in page["rows"]]
    assert days == sorted(set(days), reverse=True)
    assert len(days) == 150


# -- what is no cursor ------------------------------------------------------------------------------------------------


def encoded(value: object) -> str:
    """Give a cursor that holds any JSON."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


AT = NOON.isoformat()
NO_CURSORS = {
    "garbage": "garbage",
    "no base64": "%%%",
    "other letters": "ü" * 8,
    "no text": encoded(0)[:-1] + "_",
    "of another list": encoded({"id": "john"}),
    "of an older release": encoded([AT, "order-1"]),
    "not all of it": encoded({"at": AT}),
    "more than it": encoded({"at": AT, "order_id": "order-1", "kind": "email"}),
    "other types": encoded({"at": 1, "order_id": "order-1"}),
    "other types inside": encoded({"at": AT, "order_id": ["order-1"]}),
    "a truth": encoded({"at": AT, "order_id": True}),
    "no time": encoded({"at": "yesterday", "order_id": "order-1"}),
    "a time without offset": encoded({"at": "2026-01-05T12:00:00", "order_id": "order-1"}),
    "before all times": encoded({"at": "0001-01-01T00:00:00+14:00", "order_id": "order-1"}),
    "after all times": encoded({"at": "9999-12-31T23:59:59-14:00", "order_id": "order-1"}),
    "NUL": encoded({"at": AT, "order_id": "order\0"}),
    "half a character": encoded({"at": AT, "order_id": "\ud800"}),
    "deep": base64.urlsafe_b64encode(b"[" * 700).decode(),
    "huge": "a" * 1_001,
    "nothing": "",
}


@pytest.mark.parametrize("cursor", NO_CURSORS.values(), ids=NO_CURSORS)
def test_what_is_no_cursor_of_the_list_is_refused_in_a_sentence(stocked: Database, cursor: str) -> None:
    refused = view(make_context(stocked), "orders", "john", next=cursor)

    assert (refused["status"], refused["reason"]) == ("refused", "invalid_job")
    assert "next" in refused["detail"]


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("cursor", [*NO_CURSORS.values(), base64.urlsafe_b64encode(b"[" * 200_000).decode()])
def test_no_list_takes_what_is_no_cursor(stocked: Database, name: str, cursor: str) -> None:
    """Views also check its length; commands hand over what a person has typed."""
    with stocked.snapshot() as connection:
        try:
            shown = LISTS[name].read(connection, cursor)
        except (Refused, ValidationError):
            return
    assert cursor == "" or (name, cursor) == ("users", NO_CURSORS["of another list"]), shown


@pytest.mark.parametrize("org_id", [2**31, -(2**31) - 1, 2**63, 10**400])
def test_a_number_that_no_column_holds_is_no_cursor(stocked: Database, org_id: int) -> None:
    with stocked.snapshot() as connection:
        with pytest.raises(Refused):
            list_unknown(connection, encoded({"unknown_since": AT, "org_id": org_id, "job_id": "job-1"}))
        with pytest.raises(Refused):
            show_changes(connection, ViewChanges(viewer="john", next=encoded({"id": "a", "org_id": org_id})))


def test_a_cursor_of_one_list_is_none_of_another(stocked: Database) -> None:
    context = make_context(stocked)
    for number in range(101):
        answer(context, "credits.purchase", purchase_order(f"order-{number}", email=1))
    cursor = view(context, "orders", "john")["next"]

    by_message = view(context, "usage", "john", by="message", next=cursor)
    by_day, users_ = view(context, "usage", "john", next=cursor), view(context, "users", "john", next=cursor)

    assert [one["reason"] for one in (by_message, by_day, users_)] == ["invalid_job"] * 3


# -- what a late page costs -------------------------------------------------------------------------------------------

HISTORY = 3_000


def fill_lists(database: Database) -> None:
    """Write thousands of rows for each list."""
    stock(database, email=HISTORY + 1)
    write_sent_emails(database, "john", [NOON + timedelta(minutes=number) for number in range(HISTORY)])
    with database.engine.begin() as connection:
        for name in LISTS.keys() - {"messages"}:
            LISTS[name].come(connection, [(f"{name}-{number:05}", number % 1_000) for number in range(HISTORY)])
    upkeep.roll_up(make_context(database))
    analyze(database)


long_lists = database_filled_by(fill_lists, "postgresql")


@pytest.mark.parametrize("name", ["orders", "users", "messages", "letters", "unknown"])
def test_a_late_page_reads_nothing_of_those_before_it(long_lists: Database, name: str) -> None:
    """It reads as few rows as the first; near the end PostgreSQL may prefer to sort all that are left."""
    reads = []
    cursor = None
    for _ in range(HISTORY // 100):
        long_lists.engine.dispose()  # a new session has not counted anything yet
        with long_lists.snapshot() as connection:
            _, cursor = LISTS[name].read(connection, cursor)
            read = rows_read(connection)
        reads.append(sum(read.get(table, 0) for table in ("orders", "users", "charges", "changes", "dead_letters")))

    allowed = [max(2 * reads[0], HISTORY - number * 100 + 20) for number in range(len(reads))]
    assert [read for read, most in zip(reads, allowed, strict=True) if read > most] == [], str(reads)
    by_number = sum(range(100, HISTORY + 1, 100))  # what pages by number would read
    assert sum(reads) <= by_number // 2
