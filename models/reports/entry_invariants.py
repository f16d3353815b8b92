"""Invariants of entries: their numbers, their balances, their hashes, and what each of them was made for.

Each query returns (organization, account, subject, difference, …).
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    String,
    and_,
    case,
    func,
    literal,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy import cast as sql_cast

from models.database.schema import accounts, adjustments, charges, entries, orders, reversals
from models.database.statements import lines_digest, microseconds_of, sha256_hex
from models.reports.audit_scope import AuditScope, Query, account_name, entries_in, has_entry, is_account_of
from models.reports.rollup import is_charged_by, is_refunded_by
from models.reports.texts import words


def gaps(scope: AuditScope) -> Query:
    """Return accounts whose entries are not counted one by one up to the last."""
    stretch = scope.stretches
    count = func.count(entries.c.seq)
    last = func.coalesce(func.max(entries.c.seq), stretch.c.after_seq)
    key = accounts.c.org_id, accounts.c.id, accounts.c.owner_id, accounts.c.kind
    return (
        select(
            accounts.c.org_id,
            accounts.c.id,
            account_name(),
            words("behind entry ", stretch.c.after_seq, " up to ", stretch.c.last_seq),
            words(count, " entries up to ", last),
        )
        .join_from(stretch, accounts, is_account_of(stretch))
        .outerjoin(entries, has_entry(stretch))
        .group_by(*key, stretch.c.after_seq, stretch.c.last_seq)
        .having(or_(count != stretch.c.last_seq - stretch.c.after_seq, last != stretch.c.last_seq))
    )


def wrong_balances(scope: AuditScope) -> Query:
    """Return entries that leave something else than the entry before and their amount make."""
    entry = entries_in(scope)
    should = entry.c.balance_before + entry.c.amount
    return select(
        entry.c.org_id, entry.c.account_id, entry_name(entry), words("should leave ", should),
        words("says ", entry.c.balance_after),
    ).where(should != entry.c.balance_after)  # fmt: skip


def broken_chains(scope: AuditScope) -> Query:
    """Return entries whose hash is not that of the one before and themselves, or not the one that was known."""
    entry = entries_in(scope)
    should = _hash_of(entry)
    is_broken = or_(entry.c.hash != should, entry.c.hash != entry.c.known_hash)
    return select(
        entry.c.org_id, entry.c.account_id, entry_name(entry),
        words("hash ", entry.c.hash),
        words("should be ", case((entry.c.hash != should, should), else_=entry.c.known_hash)),
    ).where(is_broken)  # fmt: skip


def _hash_of(entry: FromClause) -> ColumnElement[str]:
    """Return the hash that an entry should have, as `chain.entry_hash` makes it."""
    names = ("org_id", "account_id", "seq", "amount", "balance_after", "debt_after", "cause_kind", "cause_id")
    fields = (entry.c.hash_before, *(entry.c[name] for name in names), microseconds_of(entry.c.at), entry.c.content)
    return sha256_hex(_joined("|", fields))


def _joined(separator: str, fields: Sequence[ColumnElement[Any]]) -> ColumnElement[str]:
    joined, *rest = (sql_cast(field, String) if isinstance(field.type, Integer) else field for field in fields)
    for field in rest:
        joined = joined + literal(separator, String) + field
    return joined


def wrong_causes(scope: AuditScope) -> Query:
    """Return entries that do not move what they were made for, or whose content is not the digest of it.

    The entries and what was found behind them are grouped, and not joined: for joins without an index, planners would
    compare each entry with every cause.
    """
    entry = entries_in(scope)
    says = select(
        *_key(entry),
        entry_name(entry).label("name"),
        (entry.c.amount - (entry.c.debt_after - entry.c.debt_before)).label("moved"),
        entry.c.content.label("content"),
        sql_cast(null(), BigInteger).label("should_move"),
        sql_cast(null(), String).label("should_content"),
    )
    parts = union_all(says, *_causes(entry)).subquery("parts")
    name, moved, content = (func.max(parts.c[column]) for column in ("name", "moved", "content"))
    should_move, should_content = func.max(parts.c.should_move), func.max(parts.c.should_content)
    is_wrong = or_(should_move.is_(None), should_move != moved, should_content.is_(None), should_content != content)
    return (
        select(
            parts.c.org_id, parts.c.account_id, name,
            words("moved ", moved, " for ", should_move),
            case((should_content == content, "the same content"), else_=words("other content than ", should_content)),
        )
        .group_by(parts.c.org_id, parts.c.account_id, parts.c.seq)
        .having(is_wrong)
    )  # fmt: skip


def _key(entry: FromClause) -> list[ColumnElement[object]]:
    return [entry.c.org_id, entry.c.account_id, entry.c.seq]


def _causes(entry: FromClause) -> list[Select[*tuple[object, ...]]]:
    """Return, for each kind of cause, what the entries of that kind should move, and their content.

    The contents are those of `content_of` (chain.py), `order_content`, `reversal_content` and `adjustment_content`.
    """
    return [
        _cause(entry, "opening", literal(0), literal("", String)),
        _messages(entry, "charge", -func.sum(charges.c.credits), charges.c.credits, is_charged_by(entry)),
        _messages(entry, "refund", func.sum(charges.c.refunded), charges.c.refunded, is_refunded_by(entry)),
        _cause(
            entry, "purchase", _of_kind(entry, orders.c.email, orders.c.sms),
            _fields(orders, "order_id", "digest", "buyer_id", "owner_id", "email", "sms", "amount", "currency"),
            orders, orders.c.order_id == entry.c.cause_id, orders.c.owner_id == entry.c.owner_id,
        ),
        _cause(
            entry, "reversal", -_of_kind(entry, reversals.c.email, reversals.c.sms),
            _fields(reversals, "reversal_id", "digest", "order_id", "kind", "email", "sms", "email_debt", "sms_debt"),
            reversals, reversals.c.reversal_id == entry.c.cause_id,
        ),
        _cause(
            entry, "adjustment", _of_kind(entry, adjustments.c.email, adjustments.c.sms),
            _fields(adjustments, "adjustment_id", "digest", "actor_id", "owner_id", "email", "sms"),
            adjustments, adjustments.c.adjustment_id == entry.c.cause_id, adjustments.c.owner_id == entry.c.owner_id,
        ),
    ]  # fmt: skip


def _cause(
    entry: FromClause,
    kind: str,
    moves: ColumnElement[int],
    content: ColumnElement[str],
    table: FromClause | None = None,
    *matches: ColumnElement[bool],
) -> Select[*tuple[object, ...]]:
    nothing = sql_cast(null(), String), sql_cast(null(), BigInteger), sql_cast(null(), String)
    query = select(*_key(entry), *nothing, moves, content).where(entry.c.cause_kind == kind)
    if table is None:
        return query
    return query.select_from(entry).join(table, and_(table.c.org_id == entry.c.org_id, *matches))


def _messages(
    entry: FromClause,
    kind: str,
    moves: ColumnElement[int],
    credits_: ColumnElement[int],
    is_behind: ColumnElement[bool],
) -> Select[*tuple[object, ...]]:
    """Return what the messages behind each entry cost together, and their content."""
    line = _joined(" ", (charges.c.job_id, charges.c.digest, charges.c.sender, credits_))
    query = _cause(entry, kind, sql_cast(moves, BigInteger), lines_digest(line))
    return query.select_from(entry).join(charges, is_behind).group_by(*_key(entry))


def _of_kind(entry: FromClause, email: ColumnElement[int], sms: ColumnElement[int]) -> ColumnElement[int]:
    return case((entry.c.kind == "email", email), else_=sms)


def _fields(table: FromClause, *names: str) -> ColumnElement[str]:
    """Return the digest of a row's columns, as `chain.content_of_fields` makes it."""
    return sha256_hex(_joined("\n", [table.c[name] for name in names]))


def entry_name(entry: FromClause) -> ColumnElement[str]:
    """Return how a finding names an entry: its account, its number, and what it was made for."""
    return words(entry.c.owner_id, "/", entry.c.kind, " ", entry.c.seq, " ", entry.c.cause_kind, ":", entry.c.cause_id)
