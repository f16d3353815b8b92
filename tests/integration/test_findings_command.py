"""The commands `postage findings`, `postage audit` and `postage verify`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.database.engine import Database
from tests.integration.audited import EVENING, damage
from tests.integration.commands import Run, open_app, printed, runner_of
from tests.integration.queued import NO_BROKER
from tests.integration.templates import url_of
from tests.unit.test_verification import statement
from worker.cli.findings import findings
from worker.cli.status import audit
from worker.cli.verify import verify

LATER = EVENING
WRONG = "UPDATE charges SET digest = 'x' || digest WHERE job_id = 'e0'"
MENDED = "UPDATE charges SET digest = substr(digest, 2) WHERE job_id = 'e0'"
DECIDED = "UPDATE charges SET unknown_since = '2099-01-01 00:00:00.000000' WHERE unknown_since IS NOT NULL"
"""The busy day is long ago, so its unknown messages would alarm too."""


@pytest.fixture
def run(busy: Database) -> Iterator[tuple[Run, Run]]:
    """Give `postage audit` and `postage findings`."""
    damage(busy, DECIDED)
    with open_app(url_of(busy), NO_BROKER) as app:
        yield runner_of(audit, app), runner_of(findings, app)


def test_an_audit_fails_until_its_findings_are_acknowledged(run: tuple[Run, Run], busy: Database) -> None:
    audit_now, on_findings = run
    clean = audit_now("--json")
    damage(busy, WRONG)
    found = audit_now("--json")
    listed = on_findings("list", "--json")
    [row] = printed(listed)["rows"]
    done = on_findings("acknowledge", str(row["id"]), "--by", "ann", "--note", "a test", "--json")
    after = audit_now("--json")
    shown = on_findings("list")

    assert (clean.exit_code, found.exit_code, done.exit_code, after.exit_code) == (0, 1, 0, 0)
    assert row["organization"] == "acme"
    assert row["subject"] == printed(found)["findings"][0]["subject"]
    assert (printed(done)["rows"][0]["acknowledged_by"], printed(done)["rows"][0]["note"]) == ("ann", "a test")
    assert "ann: a" in " ".join(shown.stdout.split())


def test_an_acknowledged_finding_alarms_again_if_it_changes(run: tuple[Run, Run], busy: Database) -> None:
    audit_now, on_findings = run
    audit_now()
    damage(busy, WRONG)
    audit_now()
    on_findings("acknowledge", "--all", "--by", "ann", "--note", "a test")
    damage(busy, WRONG)

    assert audit_now().exit_code == 1


def test_a_finding_that_is_mended_is_kept_with_its_time(run: tuple[Run, Run], busy: Database) -> None:
    audit_now, on_findings = run
    audit_now()
    damage(busy, WRONG)
    audit_now()
    damage(busy, MENDED)
    after = audit_now()

    assert after.exit_code == 0
    assert printed(on_findings("list", "--json"))["rows"] == []
    assert printed(on_findings("list", "--all", "--json"))["rows"][0]["resolved_at"] is not None


def test_only_what_alarms_can_be_acknowledged(run: tuple[Run, Run]) -> None:
    _, on_findings = run

    unknown = on_findings("acknowledge", "77", "--by", "ann", "--note", "a test")
    nothing_named = on_findings("acknowledge", "--by", "ann", "--note", "a test")
    without_reason = on_findings("acknowledge", "--all", "--by", "ann")

    assert (unknown.exit_code, nothing_named.exit_code, without_reason.exit_code) == (1, 2, 2)


def test_a_statement_is_verified_without_a_database(run: tuple[Run, Run], busy: Database, tmp_path: Path) -> None:
    file, changed = tmp_path / "statement.json", statement()
    with open_app(url_of(busy), NO_BROKER) as app:
        check = runner_of(verify, app)
        file.write_text(json.dumps(changed))
        right = check(str(file))
        changed["accounts"][0]["entries"][2]["amount"] -= 1
        file.write_text(json.dumps(changed))
        wrong = check(str(file), "--json")
        file.write_text("not JSON")
        broken = check(str(file))

    assert (right.exit_code, wrong.exit_code, broken.exit_code) == (0, 1, 1)
    assert any("john/email, entry 2" in fault for fault in printed(wrong)["faults"])
