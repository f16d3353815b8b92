"""The invariants of the money, each with a read-only query that returns its violations. Nothing is repaired here.

How things stand is in state_invariants.py, what has happened in entry_, charge_ and usage_invariants.py.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.reports import charge_invariants as charge
from models.reports import corrections_invariants as corrections
from models.reports import entry_invariants as entry
from models.reports import state_invariants as state
from models.reports import usage_invariants as usage
from models.reports.audit_scope import AuditScope, Query

FINDINGS_MAX = 100
"""Violations that are read of each invariant; more would say nothing new. Nothing moves on then."""


@dataclass(frozen=True, slots=True)
class Invariant:
    """An invariant, and the query that returns its violations as (organization, account, subject, difference, …)."""

    name: str
    violations: Query


@functools.cache
def state_invariants() -> Sequence[Invariant]:
    """Return the invariants of how things stand. Every audit checks all of them, with `state_params`."""
    return [Invariant(name, violations().limit(FINDINGS_MAX)) for name, violations in _OF_STATE.items()]


@functools.cache
def history_invariants(scope: AuditScope) -> Sequence[Invariant]:
    """Return the invariants of entries, charges, orders and usage, for those in `scope`."""
    return [Invariant(name, violations(scope).limit(FINDINGS_MAX)) for name, violations in _OF_HISTORY.items()]


_OF_STATE: dict[str, Callable[[], Query]] = {
    "No balance is below zero": state.below_zero,
    "Each user has an account of each kind": state.missing_accounts,
    "A credit owner owns their own credits, in the same organization": state.chains,
    "A user's credit owner is the one of their last change": state.wrong_credit_owners,
    "An account holds what its last entry says": state.not_as_their_last_entry,
    "What was checked of an account has stayed so": state.not_as_checked,
    "No attempt outlives its lease": state.stale_leases,
    "No job is due later than its longest retry": state.due_too_late,
    "No message is unknown for long": state.unknown_too_long,
}

_OF_HISTORY: dict[str, Callable[[AuditScope], Query]] = {
    "An account's entries are counted without a gap": entry.gaps,
    "Each entry leaves the balance that the one before and its amount make": entry.wrong_balances,
    "Each entry's hash is that of the one before and of itself": entry.broken_chains,
    "Each entry moves what it was made for, and has its content": entry.wrong_causes,
    "Each charge has its entry, made when it was": charge.charges_without_entry,
    "Each refund has its entry, made when it was": charge.refunds_without_entry,
    "Each refund is what the refused recipients cost": charge.unearned_refunds,
    "Each order has its entries": charge.orders_without_entry,
    "Each correction has its entries": charge.corrections_without_entry,
    "A debt is what reversals found spent, less what purchases paid of it first": corrections.wrong_debts,
    "An order is reversed by no more than it brought": corrections.over_reversed,
    "Each charge is paid by the sender's credit owner of then, in its kind": charge.wrong_payers,
    "Each order is credited to the buyer's credit owner of then": charge.wrong_owners,
    "Each change of owner begins where the one before ended": charge.wrong_owner_changes,
    "A bulk job costs what its messages cost": charge.bulks,
    "What waits is due, itself or by its bulk job": charge.waiting_for_nothing,
    "What is being sent is held under a lease": charge.held_without_lease,
    "An account's days of usage add up to its entries": usage.usage_sums,
    "Each day of usage is what its charges cost": usage.wrong_days,
}
