"""An audit for tests: everything is checked, at one moment, and nothing is kept of it."""

from datetime import datetime, timedelta

from sqlalchemy import Connection

from models.reports.audit import find_broken_guards, find_violations
from models.reports.audit_scope import AuditScope, whole_history
from models.reports.findings import Finding
from models.reports.invariants import Invariant, history_invariants, state_invariants
from models.reports.state_invariants import state_params

LONGEST_WAIT = timedelta(days=1)
"""How long a job may wait for an attempt, in tests."""
UNKNOWN_FOR = timedelta(days=30)


def all_invariants(scope: AuditScope | None = None) -> list[Invariant]:
    """Return all invariants, in the order in which an audit checks them."""
    return [*state_invariants(), *history_invariants(scope or whole_history())]


def audit_everything(connection: Connection, now: datetime) -> list[Finding]:
    """Return everything in the whole history that violates an invariant."""
    parameters = state_params(now, longest_wait=LONGEST_WAIT, unknown_for=UNKNOWN_FOR)
    return [*find_violations(connection, all_invariants(), parameters), *find_broken_guards(connection)]
