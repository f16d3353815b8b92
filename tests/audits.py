"""An audit for tests: everything is checked, at one moment, and no marks are left."""

from datetime import datetime

from sqlalchemy import Connection

from models.reports.audit import Finding, find_violations
from models.reports.audit_scope import WHOLE_HISTORY, AuditScope, Invariant
from models.reports.invariants import history_invariants, state_invariants


def all_invariants(now: datetime, scope: AuditScope = WHOLE_HISTORY) -> list[Invariant]:
    """Return all invariants, in the order in which an audit checks them."""
    return [*state_invariants(now), *history_invariants(scope)]


def audit_everything(connection: Connection, now: datetime) -> list[Finding]:
    """Return everything in the whole history that violates an invariant."""
    return list(find_violations(connection, all_invariants(now)))
