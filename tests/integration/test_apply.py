"""`postage apply` and the commands that save: what they do, what they would do, and that a second time does nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from models.database.engine import Database
from models.database.schema import metadata
from tests.integration.commands import Run, open_app, printed, runner_of
from worker.cli.main import postage

STORY: list[tuple[str, dict[str, Any]]] = [
    ("roles.save", {"organization": "acme", "role": "admin", "rights": ["view_user_list", "edit_user"]}),
    ("plans.save", {"plan": "small", "name": "Small", "credits": {"email": 9}, "price": 900, "currency": "EUR"}),
    *(
        ("users.save", {"user_id": user, "organization": "acme", "name": user, "email": f"{user}@acme.example",
                        "role": "admin", "billing": {"name": user}})
        for user in ("john", "peter")
    ),
    ("credits.purchase", {"order_id": "order-1", "buyer": "peter", "plan": "small"}),
    ("credits.set_owner", {"change_id": "change-1", "actor": "john", "user": "peter", "owner": "john"}),
    ("credits.purchase", {"order_id": "order-2", "buyer": "peter", "plan": "small"}),
]  # fmt: skip


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def run(database_url: str, valkey_url: str) -> Iterator[Run]:
    with open_app(database_url, valkey_url) as app, capture_logs():
        yield runner_of(postage, app)


def write(folder: Path, story: list[tuple[str, dict[str, Any]]]) -> str:
    file = folder / "seed.jsonl"
    file.write_text("# seed\n" + "".join(json.dumps({"task": task, "job": job}) + "\n" for task, job in story))
    return str(file)


def rows_of(database: Database) -> dict[str, list[Any]]:
    """Everything that is stored."""
    with database.snapshot() as connection:
        return {name: sorted(map(repr, connection.execute(table.select()))) for name, table in metadata.tables.items()}


def changes(answer: dict[str, Any]) -> list[str]:
    return [row["change"] for row in answer["rows"]]


def test_a_dry_run_shows_exactly_what_is_done_then_and_writes_nothing(
    run: Run, database: Database, tmp_path: Path
) -> None:
    file, before = write(tmp_path, STORY), rows_of(database)

    shown = printed(run("apply", file, "--dry-run", "--json"))

    assert rows_of(database) == before
    assert changes(shown) == ["new", "new", "new", "new", "new", "changed", "new"]
    assert shown["rows"][5]["fields"] == {"owner": ["peter", "john"]}
    done = printed(run("apply", file, "--json"))
    assert done == shown | {"dry_run": False}
    assert printed(run("overview", "john", "--json"))["remaining"] == {"email": 9, "sms": 0}


def test_a_file_can_be_applied_again_and_only_what_differs_changes(
    run: Run, database: Database, tmp_path: Path
) -> None:
    run("apply", write(tmp_path, STORY))
    before = rows_of(database)

    again = printed(run("apply", write(tmp_path, STORY), "--json"))

    assert set(changes(again)) == {"unchanged"}
    assert rows_of(database) == before
    story = [(task, {**job, "price": 950} if task == "plans.save" else job) for task, job in STORY]
    differs = run("apply", write(tmp_path, story), "--dry-run")
    assert differs.exit_code == 0
    assert "price: 900 → 950" in differs.stdout
    assert "0 new, 1 changed, 6 unchanged. Nothing was written." in differs.stdout
    assert rows_of(database) == before


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["done", "dry run"])
def test_an_error_in_the_file_is_named_before_anything_is_done(
    run: Run, database: Database, tmp_path: Path, dry: tuple[str, ...]
) -> None:
    before = rows_of(database)
    wrong = [*STORY, ("users.save", {"user_id": "mary"}), ("views.overview", {"viewer": "john"})]

    refused = run("apply", write(tmp_path, wrong), *dry)

    assert refused.exit_code == 1
    assert "Line 9 (users.save): `organization`" in refused.output
    assert "Line 10 (views.overview): Only these can be applied" in refused.output
    assert rows_of(database) == before


def test_a_refused_line_ends_it_and_says_why(run: Run, tmp_path: Path) -> None:
    story = [*STORY[:2], ("credits.purchase", {"order_id": "o", "buyer": "nobody", "plan": "small"}), *STORY[2:]]

    for dry in (("--dry-run",), ()):
        refused = run("apply", write(tmp_path, story), "--json", *dry)

        assert refused.exit_code == 1
        answer = printed(refused)
        assert (changes(answer), answer["not_reached"]) == (["new", "new", "refused"], 5)
        assert answer["rows"][-1]["reason"] == "unknown_user"


def test_users_roles_and_plans_are_saved_by_commands(run: Run) -> None:
    saved = [
        run("role", "save", "acme", "boss", "--right", "view_user_list", "--right", "edit_user"),
        run("user", "save", "mary", "--organization", "acme", "--name", "Mary", "--email", "mary@acme.example",
            "--role", "boss", "--billing", "name=Mary", "--as", "mary"),
        run("plan", "save", "tiny", "--name", "Tiny", "--sms", "3", "--price", "90", "--currency", "EUR"),
    ]  # fmt: skip

    assert [(one.exit_code, one.stdout) for one in saved] == [
        (0, "boss is saved.\n"), (0, "mary is saved.\n"), (0, "tiny is saved.\n"),
    ]  # fmt: skip
    assert printed(run("buy", "mary", "--plan", "tiny", "--json"))["credits"] == {"email": 0, "sms": 3}
    stale = run("plan", "save", "tiny", "--name", "T", "--sms", "1", "--price", "1", "--currency", "EUR", "--version",
                "1")  # fmt: skip
    assert stale.exit_code == 0
    assert run("user", "save", "eve", "--organization", "acme", "--name", "E", "--email", "e@acme.example", "--role",
               "none").exit_code == 1  # fmt: skip
