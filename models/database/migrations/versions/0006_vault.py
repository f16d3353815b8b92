"""The vault, second edition: entries of whole transactions, keys within the organization, corrections, hash chains.

Every table is made anew and filled from the old one, since SQLite changes no keys in place. What was charged, refunded
and bought keeps its entry; each account gets an opening entry, and its chain of hashes. Audits begin again from
nothing.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

OLD_TABLES = ("accounts", "audit_marks", "audit_progress", "charges", "dead_letters", "decisions", "entries",
              "leases", "orders", "owner_changes", "plans", "refusals", "roles", "usage_days", "usage_marks",
              "users")  # fmt: skip
APPEND_ONLY = ("entries", "orders", "reversals", "adjustments", "owner_changes", "erasures", "changes", "decisions")
DECISION = "org_id, id, job_id, decision, operator, at"
"""The columns of a decision that are never changed. Its note may be erased."""
ENTRY_BATCH = 5_000


def upgrade() -> None:
    """Set the old tables aside, make the new ones, fill them, and remove the old ones."""
    if _is_postgresql():
        op.execute("SET LOCAL statement_timeout = 0")  # a long history takes as long as it takes
        op.execute("SET LOCAL enable_seqscan = on")
    _set_old_tables_aside()
    _create_tables()
    for table, select in COPIES:
        _copy(table, select)
    _copy_decisions()
    _copy_leases()
    _create_indexes()
    _enter_again()
    for table in OLD_TABLES:
        op.execute(f"DROP TABLE old_{table}{' CASCADE' if _is_postgresql() else ''}")
    if _is_postgresql():
        _continue_numbers()
        _refuse_changes_on_postgresql()
    else:
        _refuse_changes_on_sqlite()


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _set_old_tables_aside() -> None:
    """Rename the old tables, and free the names of their indexes and triggers for the new ones."""
    inspector = sa.inspect(op.get_bind())
    for table in OLD_TABLES:
        indexes = [index["name"] for index in inspector.get_indexes(table)]
        if _is_postgresql():
            keys = [inspector.get_pk_constraint(table)["name"]]
            keys += [unique["name"] for unique in inspector.get_unique_constraints(table)]
            for name in {*indexes, *keys}:
                op.execute(f"ALTER INDEX {name} RENAME TO old_{name}")
        else:
            for name in indexes:
                op.execute(f"DROP INDEX {name}")
        op.execute(f"ALTER TABLE {table} RENAME TO old_{table}")


ORG_OF_ACCOUNT = "(SELECT u.org_id FROM old_accounts a JOIN users u ON u.id = a.owner_id WHERE a.id = {account_id})"
ORG_OF_USER = "coalesce((SELECT u.org_id FROM users u WHERE u.id = {user}), 0)"
# The version of the owner who paid: the last one before the charge, else the first; clocks of workers may differ.
OWNER_VERSION = """coalesce(
    (SELECT max(v.version) FROM owner_changes v
     WHERE v.user_id = {user} AND v.new_owner_id = {owner} AND v.at <= {at}),
    CASE WHEN {owner} = {user} THEN 0 END,
    (SELECT min(v.version) FROM owner_changes v WHERE v.user_id = {user} AND v.new_owner_id = {owner}),
    0)"""
IS_PAID_WITH_BULK = "(SELECT b.messages FROM old_charges b WHERE b.job_id = c.bulk_id) IS NOT NULL"

COPIES = (
    (
        "organizations",
        """SELECT row_number() OVER (ORDER BY o.organization) AS id, o.organization AS name,
            coalesce((SELECT max(a.id) FROM old_accounts a JOIN old_users u ON u.id = a.owner_id
                      WHERE u.organization = o.organization), 0) AS accounts
        FROM (SELECT organization FROM old_roles UNION SELECT organization FROM old_users) o""",
    ),
    (
        "roles",
        """SELECT o.id AS org_id, r.role, r.view_user_list, r.edit_user, (1 = 0) AS adjust_credits
        FROM old_roles r JOIN organizations o ON o.name = r.organization""",
    ),
    (
        "users",
        """SELECT u.id, o.id AS org_id, u.name, u.email, u.role, u.billing, u.credit_owner_id, u.is_owner,
            (SELECT count(*) FROM old_owner_changes v WHERE v.user_id = u.id) AS owner_version, u.created_at
        FROM old_users u JOIN organizations o ON o.name = u.organization ORDER BY u.is_owner DESC""",
    ),
    ("plans", "SELECT id, name, email, sms, price, currency FROM old_plans"),
    (
        "owner_changes",
        """SELECT u.org_id, v.change_id, v.digest, v.actor_id, v.user_id,
            row_number() OVER (PARTITION BY v.user_id ORDER BY v.at, v.change_id) AS version,
            v.old_owner_id, v.new_owner_id, v.at
        FROM old_owner_changes v JOIN users u ON u.id = v.user_id""",
    ),
    (
        "orders",
        f"""SELECT u.org_id, o.order_id, o.digest, o.buyer_id, o.owner_id,
            {OWNER_VERSION.format(user="o.buyer_id", owner="o.owner_id", at="o.at")} AS owner_version,
            o.plan, o.email, o.sms, o.amount, o.currency, o.billing, o.at
        FROM old_orders o JOIN users u ON u.id = o.buyer_id""",
    ),
    (
        "charges",
        f"""SELECT {ORG_OF_USER.format(user="c.sender")} AS org_id, c.job_id, c.task, c.kind, c.sender,
            CASE WHEN c.account_id IS NOT NULL THEN
                {OWNER_VERSION.format(user="c.sender", owner="a.owner_id", at="c.created_at")} END AS owner_version,
            c.digest, c.account_id, c.credits,
            CASE WHEN c.account_id IS NULL THEN NULL WHEN {IS_PAID_WITH_BULK} THEN c.bulk_id ELSE c.job_id END
                AS charged_by,
            c.refunded, CASE WHEN c.refunded > 0 THEN c.job_id END AS refunded_by, c.refunded_at, c.state, c.reason,
            c.detail, c.attempts, c.lease_until, c.due_at, c.crashes, c.lease_id, c.handover_started_at,
            c.unknown_since, c.content, c.recipients_refused, c.carrier_reference, c.bulk_id, c.created_at, c.final_at
        FROM old_charges c LEFT JOIN old_accounts a ON a.id = c.account_id""",
    ),
    (
        "refusals",
        f"""SELECT r.id, {ORG_OF_USER.format(user="r.person")} AS org_id, r.task, r.task_id, r.key, r.person, r.reason,
            r.detail, r.at
        FROM old_refusals r""",
    ),
    (
        "dead_letters",
        f"""SELECT d.id, {ORG_OF_USER.format(user="d.person")} AS org_id, d.task, d.task_id, d.key, d.person, d.status,
            d.reason, d.detail, d.job, d.digest, d.at, d.replayed_as, d.replayed_at
        FROM old_dead_letters d""",
    ),
    (
        "usage_days",
        f"""SELECT {ORG_OF_ACCOUNT.format(account_id="d.account_id")} AS org_id, d.account_id, d.day, d.sender,
            d.credits, d.messages
        FROM old_usage_days d""",
    ),
    (
        "usage_marks",
        f"""SELECT {ORG_OF_ACCOUNT.format(account_id="m.account_id")} AS org_id, m.account_id, m.seq, m.spent, m.added
        FROM old_usage_marks m""",
    ),
)


def _copy(table: str, select: str) -> None:
    """Fill a table with what a statement selects, whose columns have the table's names."""
    bind = op.get_bind()
    names = list(bind.execute(sa.text(f"SELECT * FROM ({select}) AS rows LIMIT 0")).keys())
    quoted = ", ".join(f'"{name}"' for name in names)
    bind.exec_driver_sql(f"INSERT INTO {table} ({quoted}) SELECT {quoted} FROM ({select}) AS copied")


def _copy_decisions() -> None:
    number = "lpad(to_hex(d.id), 32, '0')" if _is_postgresql() else "printf('%032x', d.id)"
    _copy(
        "decisions",
        f"""SELECT c.org_id, {number} AS id, d.job_id, d.decision, d.operator, d.note, d.at
        FROM old_decisions d JOIN charges c ON c.job_id = d.job_id""",
    )


def _copy_leases() -> None:
    """Give each organization a lease of its own for the jobs that it has under one."""
    bind = op.get_bind()
    held = bind.execute(
        sa.text(
            "SELECT c.org_id, l.lease_id, l.until, c.job_id "
            "FROM old_leases l JOIN charges c ON c.lease_id = l.lease_id "
            "WHERE c.state = 'sending' ORDER BY c.org_id, l.lease_id, c.job_id"
        )
    ).all()
    leases: dict[tuple[int, str], tuple[Any, list[str]]] = {}
    for row in held:
        leases.setdefault((row.org_id, row.lease_id), (row.until, []))[1].append(row.job_id)
    insert = sa.text("INSERT INTO leases (org_id, lease_id, until, job_ids) VALUES (:org_id, :lease_id, :until, :ids)")
    for (org_id, lease_id), (until, ids) in leases.items():
        bind.execute(insert, {"org_id": org_id, "lease_id": lease_id, "until": until, "ids": json.dumps(ids)})


# -- entries and their chains -----------------------------------------------------------------------------------------


def _enter_again() -> None:
    """Write each account with its opening entry and its old entries, chained by their hashes."""
    bind = op.get_bind()
    accounts = bind.execute(
        sa.text(
            "SELECT u.org_id, a.id, a.owner_id, a.kind, a.available, a.seq, u.created_at "
            "FROM old_accounts a JOIN users u ON u.id = a.owner_id ORDER BY u.org_id, a.id"
        )
    ).all()
    for account in accounts:
        opened_at = _utc(account.created_at)
        last = _hash("", account, (0, 0, 0, "opening", "", opened_at, ""))
        _insert_entries([_entry(account, (0, 0, 0, "opening", "", opened_at, ""), last)])
        left = (0, 0)
        for batch in _old_entries(account):
            entries = []
            left = (batch[-1][0], batch[-1][2])
            for values in batch:
                last = _hash(last, account, values)
                entries.append(_entry(account, values, last))
            _insert_entries(entries)
        if left != (account.seq, account.available):
            msg = (
                f"The {account.kind} account of {account.owner_id} holds {account.available} after {account.seq} "
                f"entries, but the last of them, number {left[0]}, leaves {left[1]}. Run `postage audit --full` with "
                "the release that made this database, and mend what it finds before you migrate."
            )
            raise RuntimeError(msg)
        bind.execute(
            sa.text(
                "INSERT INTO accounts (org_id, id, owner_id, kind, available, debt, seq, hash) "
                "VALUES (:org_id, :id, :owner_id, :kind, :available, 0, :seq, :hash)"
            ),
            {**{name: account._asdict()[name] for name in ("org_id", "id", "owner_id", "kind", "available", "seq")},
             "hash": last},
        )  # fmt: skip


Values = tuple[int, int, int, str, str, datetime, str]
"""Number, amount, balance, kind and id of the cause, time, content."""


def _old_entries(account: Any) -> Iterator[list[Values]]:  # noqa: ANN401  a row
    """Yield the old entries of an account in their order."""
    query = sa.text(
        """SELECT e.seq, e.amount, e.balance_after, e.cause, e.at, c.job_id, c.digest, c.sender, c.credits, c.refunded,
            c.state, c.created_at, c.refunded_at, o.order_id, o.digest AS order_digest, o.buyer_id, o.owner_id, o.email,
            o.sms, o.amount AS price, o.currency
        FROM old_entries e
        LEFT JOIN charges c ON c.org_id = :org_id AND substr(e.cause, 1, 7) IN ('charge:', 'refund:')
            AND c.job_id = substr(e.cause, 8)
        LEFT JOIN orders o ON o.org_id = :org_id AND substr(e.cause, 1, 9) = 'purchase:'
            AND o.order_id = substr(e.cause, 10, CASE WHEN length(e.cause) > 10 + length(:kind)
                                                  THEN length(e.cause) - 10 - length(:kind) ELSE 0 END)
        WHERE e.account_id = :account_id AND e.seq > :seq ORDER BY e.seq LIMIT :most"""
    )
    seq = 0
    while True:
        found = op.get_bind().execute(
            query,
            {"org_id": account.org_id, "kind": account.kind, "account_id": account.id, "seq": seq, "most": ENTRY_BATCH},
        )
        batch = [_values(account.org_id, account.kind, row) for row in found]
        if not batch:
            return
        yield batch
        seq = batch[-1][0]


def _values(org_id: int, kind: str, row: Any) -> Values:  # noqa: ANN401  a row
    cause_kind, _, cause_id = row.cause.partition(":")
    at, content = row.at, _sha256("")
    if cause_kind == "purchase":
        cause_id = cause_id.removesuffix(f":{kind}")
        if row.order_id is not None:
            content = _sha256(
                f"{row.order_id}\n{row.order_digest}\n{row.buyer_id}\n{row.owner_id}\n{row.email}\n{row.sms}\n"
                f"{row.price}\n{row.currency}"
            )
    elif row.state == "bulk":
        at = row.created_at
        content = _sha256("\n".join(sorted(_messages_of(org_id, row.job_id))))
    elif row.job_id is not None:
        at = row.created_at if cause_kind == "charge" else row.refunded_at or row.at
        paid = row.credits if cause_kind == "charge" else row.refunded
        content = _sha256(f"{row.job_id} {row.digest} {row.sender} {paid}")
    return row.seq, row.amount, row.balance_after, cause_kind, cause_id, _utc(at), content


def _messages_of(org_id: int, bulk_id: str) -> Iterator[str]:
    query = sa.text("SELECT job_id, digest, sender, credits FROM charges WHERE org_id = :org_id AND bulk_id = :bulk_id")
    for row in op.get_bind().execute(query, {"org_id": org_id, "bulk_id": bulk_id}):
        yield f"{row.job_id} {row.digest} {row.sender} {row.credits}"


def _utc(stored: Any) -> datetime:  # noqa: ANN401  as the database gives it
    """Return a stored time. SQLite gives text without an offset."""
    at = datetime.fromisoformat(stored) if isinstance(stored, str) else stored
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash(before: str, account: Any, values: Values) -> str:  # noqa: ANN401  a row
    seq, amount, balance, cause_kind, cause_id, at, content = values
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    microseconds = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    fields = (before, account.org_id, account.id, seq, amount, balance, 0, cause_kind, cause_id, microseconds, content)
    return _sha256("|".join(str(field) for field in fields))


def _entry(account: Any, values: Values, hash_: str) -> dict[str, Any]:  # noqa: ANN401  a row
    names = ("seq", "amount", "balance_after", "cause_kind", "cause_id", "at", "content")
    entry: dict[str, Any] = dict(zip(names, values, strict=True))
    if not _is_postgresql():
        entry["at"] = entry["at"].replace(tzinfo=None).isoformat(" ", "microseconds")
    return {**entry, "org_id": account.org_id, "account_id": account.id, "hash": hash_}


def _insert_entries(entries: Sequence[dict[str, Any]]) -> None:
    op.get_bind().execute(
        sa.text(
            "INSERT INTO entries (org_id, account_id, seq, amount, balance_after, debt_after, cause_kind, cause_id, "
            "content, hash, at) VALUES (:org_id, :account_id, :seq, :amount, :balance_after, 0, :cause_kind, "
            ":cause_id, :content, :hash, :at)"
        ),
        entries,
    )


# -- rules of the database --------------------------------------------------------------------------------------------


def _continue_numbers() -> None:
    """Let PostgreSQL number new rows after the copied ones."""
    for table in ("organizations", "refusals", "dead_letters"):
        op.execute(
            f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), coalesce(max(id), 0) + 1, false) FROM {table}"
        )


def _refuse_changes_on_postgresql() -> None:
    for table in APPEND_ONLY:
        columns = f" OF {DECISION}" if table == "decisions" else ""
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE{columns} OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
    op.execute(
        "CREATE TRIGGER decisions_note_only_erased BEFORE UPDATE OF note ON decisions "
        "FOR EACH ROW WHEN (new.note IS NOT NULL) EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER accounts_never_deleted BEFORE DELETE OR UPDATE OF org_id, id, owner_id, kind ON accounts "
        "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )
    for table in (*APPEND_ONLY, "accounts"):
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )


def _refuse_changes_on_sqlite() -> None:
    verbs = [(table, verb, verb) for table in APPEND_ONLY if table != "decisions" for verb in ("UPDATE", "DELETE")]
    verbs += [("decisions", "DELETE", "DELETE"), ("decisions", "UPDATE", f"UPDATE OF {DECISION}")]
    verbs += [("accounts", "DELETE", "DELETE"), ("accounts", "UPDATE", "UPDATE OF org_id, id, owner_id, kind")]
    for table, verb, when in verbs:
        op.execute(
            f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {when} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only: {verb} is refused'); END"
        )
    op.execute(
        "CREATE TRIGGER decisions_note_only_erased BEFORE UPDATE OF note ON decisions WHEN new.note IS NOT NULL "
        "BEGIN SELECT RAISE(ABORT, 'decisions is append-only: UPDATE is refused'); END"
    )


# -- tables -----------------------------------------------------------------------------------------------------------


def _create_tables() -> None:
    op.create_table(
        "audit_marks",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("account_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("balance", sa.BigInteger(), nullable=False),
        sa.Column("debt", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("usage_seq", sa.BigInteger(), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("whole_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("again_seq", sa.BigInteger(), nullable=True),
        sa.Column("again_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("held_seq", sa.BigInteger(), nullable=True),
        sa.Column("held_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("org_id", "account_id", name=op.f("pk_audit_marks")),
    )
    op.create_table(
        "audit_progress",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("whole_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("id = 1", name=op.f("ck_audit_progress_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_progress")),
    )
    op.create_table(
        "changes",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("subject", sa.String(length=130), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=True),
        sa.Column("old", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("new", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "kind IN ('user', 'role', 'plan', 'owner', 'credits', 'erasure')", name=op.f("ck_changes_known_kind")
        ),
        sa.PrimaryKeyConstraint("org_id", "id", name=op.f("pk_changes")),
    )
    op.create_table(
        "charges",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("job_id", sa.String(length=72), nullable=False),
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=5), nullable=False),
        sa.Column("sender", sa.String(length=64), nullable=False),
        sa.Column("owner_version", sa.Integer(), nullable=True),
        sa.Column("digest", sa.String(length=72), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=True),
        sa.Column("credits", sa.BigInteger(), nullable=False),
        sa.Column("charged_by", sa.String(length=72), nullable=True),
        sa.Column("refunded", sa.BigInteger(), nullable=False),
        sa.Column("refunded_by", sa.String(length=72), nullable=True),
        sa.Column("refunded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("reason", sa.String(length=40), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("attempts", sa.SmallInteger(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("crashes", sa.SmallInteger(), nullable=False),
        sa.Column("lease_id", sa.String(length=32), nullable=True),
        sa.Column("handover_started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("unknown_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("content", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("recipients_refused", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("carrier_reference", sa.String(length=300), nullable=True),
        sa.Column("bulk_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("final_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(account_id IS NULL) = (state IN ('refused', 'bulk'))", name=op.f("ck_charges_somebody_paid")
        ),
        sa.CheckConstraint(
            "(content IS NOT NULL) = (state IN ('waiting', 'sending', 'unknown'))",
            name=op.f("ck_charges_content_while_open"),
        ),
        sa.CheckConstraint(
            "(final_at IS NOT NULL) = (state IN ('sent', 'failed', 'refused'))",
            name=op.f("ck_charges_final_has_its_time"),
        ),
        sa.CheckConstraint(
            "(lease_until IS NOT NULL) = (state = 'sending')", name=op.f("ck_charges_lease_while_sending")
        ),
        sa.CheckConstraint(
            "(unknown_since IS NOT NULL) = (state = 'unknown')", name=op.f("ck_charges_unknown_since_then")
        ),
        sa.CheckConstraint("due_at IS NULL OR state IN ('waiting', 'bulk')", name=op.f("ck_charges_due_while_waiting")),
        sa.CheckConstraint(
            "handover_started_at IS NULL OR state IN ('sending', 'waiting', 'unknown')",
            name=op.f("ck_charges_doubt_while_open"),
        ),
        sa.CheckConstraint("kind IN ('email', 'sms')", name=op.f("ck_charges_known_kind")),
        sa.CheckConstraint(
            "refunded = 0 OR state IN ('sent', 'failed')", name=op.f("ck_charges_only_final_is_refunded")
        ),
        sa.CheckConstraint("state <> 'failed' OR refunded = credits", name=op.f("ck_charges_failed_is_refunded")),
        sa.CheckConstraint(
            "state <> 'waiting' OR due_at IS NOT NULL OR bulk_id IS NOT NULL", name=op.f("ck_charges_waiting_is_due")
        ),
        sa.CheckConstraint(
            "state IN ('waiting', 'sending', 'sent', 'failed', 'unknown', 'refused', 'bulk')",
            name=op.f("ck_charges_known_state"),
        ),
        sa.CheckConstraint("(account_id IS NULL) = (charged_by IS NULL)", name=op.f("ck_charges_paid_by_an_entry")),
        sa.CheckConstraint("(refunded_at IS NOT NULL) = (refunded > 0)", name=op.f("ck_charges_refund_has_its_time")),
        sa.CheckConstraint("(refunded_by IS NOT NULL) = (refunded > 0)", name=op.f("ck_charges_refund_has_its_entry")),
        sa.CheckConstraint("account_id IS NULL OR owner_version IS NOT NULL", name=op.f("ck_charges_paid_by_an_owner")),
        sa.CheckConstraint("credits > 0", name=op.f("ck_charges_costs_something")),
        sa.CheckConstraint("refunded BETWEEN 0 AND credits", name=op.f("ck_charges_refund_within_charge")),
        sa.PrimaryKeyConstraint("org_id", "job_id", name=op.f("pk_charges")),
        postgresql_with={"fillfactor": 55},
    )
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("org_id", sa.Integer(), nullable=False),
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.Column("task_id", sa.String(length=255), nullable=True),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("person", sa.String(length=64), nullable=True),
        sa.Column("status", sa.String(length=7), nullable=False),
        sa.Column("reason", sa.String(length=40), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("job", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("replayed_as", sa.String(length=255), nullable=True),
        sa.Column("replayed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('refused', 'failed', 'fault')", name=op.f("ck_dead_letters_known_status")),
        sa.CheckConstraint(
            "(replayed_as IS NULL) = (replayed_at IS NULL)", name=op.f("ck_dead_letters_replayed_as_something")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
        sa.UniqueConstraint("digest", name=op.f("uq_dead_letters_digest")),
    )
    op.create_table(
        "entries",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("account_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("balance_after", sa.BigInteger(), nullable=False),
        sa.Column("debt_after", sa.BigInteger(), nullable=False),
        sa.Column("cause_kind", sa.String(length=10), nullable=False),
        sa.Column("cause_id", sa.String(length=72), nullable=False),
        sa.Column("content", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("(seq = 0) = (cause_kind = 'opening')", name=op.f("ck_entries_counted_from_opening")),
        sa.CheckConstraint(
            "amount <> 0 OR cause_kind IN ('opening', 'purchase', 'reversal')", name=op.f("ck_entries_moves_something")
        ),
        sa.CheckConstraint(
            "cause_kind IN ('opening', 'charge', 'refund', 'purchase', 'reversal', 'adjustment')",
            name=op.f("ck_entries_known_cause"),
        ),
        sa.CheckConstraint("balance_after >= 0", name=op.f("ck_entries_never_below_zero")),
        sa.CheckConstraint("debt_after >= 0", name=op.f("ck_entries_debt_not_negative")),
        sa.CheckConstraint(
            "seq > 0 OR (seq = 0 AND amount = 0 AND balance_after = 0 AND debt_after = 0)",
            name=op.f("ck_entries_opens_empty"),
        ),
        sa.PrimaryKeyConstraint("org_id", "account_id", "seq", name=op.f("pk_entries")),
        sa.UniqueConstraint(
            "org_id",
            "account_id",
            "cause_kind",
            "cause_id",
            name=op.f("uq_entries_org_id_account_id_cause_kind_cause_id"),
        ),
        sa.UniqueConstraint(
            "org_id",
            "account_id",
            "seq",
            "balance_after",
            "debt_after",
            name=op.f("uq_entries_org_id_account_id_seq_balance_after_debt_after"),
        ),
    )
    op.create_table(
        "findings",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("org_id", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=True),
        sa.Column("by_whole", sa.Boolean(), nullable=False),
        sa.Column("invariant", sa.String(length=120), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("difference", sa.Text(), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("acknowledged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("acknowledged_by", sa.String(length=64), nullable=True),
        sa.Column("note", sa.String(length=500), nullable=True),
        sa.CheckConstraint(
            "(acknowledged_at IS NULL) = (acknowledged_by IS NULL)", name=op.f("ck_findings_acknowledged_by_somebody")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_findings")),
        sa.UniqueConstraint("org_id", "invariant", "subject", name=op.f("uq_findings_org_id_invariant_subject")),
    )
    op.create_table(
        "leases",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("lease_id", sa.String(length=32), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("job_ids", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("org_id", "lease_id", name=op.f("pk_leases")),
    )
    op.create_table(
        "organizations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("accounts", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organizations")),
        sa.UniqueConstraint("name", name=op.f("uq_organizations_name")),
    )
    op.create_table(
        "plans",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=500), nullable=False),
        sa.Column("email", sa.BigInteger(), nullable=False),
        sa.Column("sms", sa.BigInteger(), nullable=False),
        sa.Column("price", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("email >= 0 AND sms >= 0 AND email + sms > 0", name=op.f("ck_plans_some_credits")),
        sa.CheckConstraint("price >= 0", name=op.f("ck_plans_price_not_negative")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plans")),
    )
    op.create_table(
        "refusals",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("org_id", sa.Integer(), nullable=False),
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.Column("task_id", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=True),
        sa.Column("person", sa.String(length=64), nullable=True),
        sa.Column("reason", sa.String(length=40), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refusals")),
    )
    op.create_table(
        "usage_days",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("account_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("sender", sa.String(length=64), nullable=False),
        sa.Column("credits", sa.BigInteger(), nullable=False),
        sa.Column("messages", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("credits >= 0", name=op.f("ck_usage_days_refunds_within_charges")),
        sa.CheckConstraint("messages > 0", name=op.f("ck_usage_days_some_messages")),
        sa.PrimaryKeyConstraint("org_id", "account_id", "day", "sender", name=op.f("pk_usage_days")),
    )
    op.create_table(
        "usage_marks",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("account_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("added", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("seq >= 0", name=op.f("ck_usage_marks_seq_not_negative")),
        sa.PrimaryKeyConstraint("org_id", "account_id", name=op.f("pk_usage_marks")),
    )
    op.create_table(
        "decisions",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("job_id", sa.String(length=72), nullable=False),
        sa.Column("decision", sa.String(length=6), nullable=False),
        sa.Column("operator", sa.String(length=64), nullable=False),
        sa.Column("note", sa.String(length=500), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("decision IN ('refund', 'resend')", name=op.f("ck_decisions_known_decision")),
        sa.ForeignKeyConstraint(
            ["org_id", "job_id"], ["charges.org_id", "charges.job_id"], name=op.f("fk_decisions_org_id_job_id")
        ),
        sa.PrimaryKeyConstraint("org_id", "id", name=op.f("pk_decisions")),
    )
    op.create_table(
        "roles",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("role", sa.String(length=64), nullable=False),
        sa.Column("view_user_list", sa.Boolean(), nullable=False),
        sa.Column("edit_user", sa.Boolean(), nullable=False),
        sa.Column("adjust_credits", sa.Boolean(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f("fk_roles_org_id")),
        sa.PrimaryKeyConstraint("org_id", "role", name=op.f("pk_roles")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("org_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=500), nullable=False),
        sa.Column("email", sa.String(length=320), nullable=False),
        sa.Column("role", sa.String(length=64), nullable=False),
        sa.Column("billing", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("credit_owner_id", sa.String(length=64), nullable=False),
        sa.Column("is_owner", sa.Boolean(), nullable=False),
        sa.Column("owner_is_owner", sa.Boolean(), server_default=sa.text("(true)"), nullable=False),
        sa.Column("owner_version", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("is_owner = (credit_owner_id = id)", name=op.f("ck_users_owner_owns_themselves")),
        sa.CheckConstraint("owner_is_owner", name=op.f("ck_users_owner_is_owner")),
        sa.ForeignKeyConstraint(
            ["org_id", "credit_owner_id", "owner_is_owner"],
            ["users.org_id", "users.id", "users.is_owner"],
            name="fk_users_credit_owner",
        ),
        sa.ForeignKeyConstraint(["org_id", "role"], ["roles.org_id", "roles.role"], name="fk_users_role"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("org_id", "id", "is_owner", name=op.f("uq_users_org_id_id_is_owner")),
    )
    op.create_table(
        "accounts",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=5), nullable=False),
        sa.Column("available", sa.BigInteger(), nullable=False),
        sa.Column("debt", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.CheckConstraint("kind IN ('email', 'sms')", name=op.f("ck_accounts_known_kind")),
        sa.CheckConstraint("available >= 0", name=op.f("ck_accounts_never_below_zero")),
        sa.CheckConstraint("debt >= 0", name=op.f("ck_accounts_debt_not_negative")),
        sa.ForeignKeyConstraint(
            ["org_id", "id", "seq", "available", "debt"],
            ["entries.org_id", "entries.account_id", "entries.seq", "entries.balance_after", "entries.debt_after"],
            name="fk_accounts_last_entry",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_accounts_owner_id")),
        sa.PrimaryKeyConstraint("org_id", "id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("org_id", "owner_id", "kind", name=op.f("uq_accounts_org_id_owner_id_kind")),
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "adjustments",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("adjustment_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=72), nullable=False),
        sa.Column("actor_id", sa.String(length=64), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=False),
        sa.Column("email", sa.BigInteger(), nullable=False),
        sa.Column("sms", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("email <> 0 OR sms <> 0", name=op.f("ck_adjustments_some_credits")),
        sa.ForeignKeyConstraint(["actor_id"], ["users.id"], name=op.f("fk_adjustments_actor_id")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_adjustments_owner_id")),
        sa.PrimaryKeyConstraint("org_id", "adjustment_id", name=op.f("pk_adjustments")),
    )
    op.create_table(
        "erasures",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("erasure_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=72), nullable=False),
        sa.Column("actor_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["actor_id"], ["users.id"], name=op.f("fk_erasures_actor_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_erasures_user_id")),
        sa.PrimaryKeyConstraint("org_id", "erasure_id", name=op.f("pk_erasures")),
    )
    op.create_table(
        "orders",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("order_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=72), nullable=False),
        sa.Column("buyer_id", sa.String(length=64), nullable=False),
        sa.Column("owner_id", sa.String(length=64), nullable=False),
        sa.Column("owner_version", sa.Integer(), nullable=False),
        sa.Column("plan", sa.String(length=64), nullable=True),
        sa.Column("email", sa.BigInteger(), nullable=False),
        sa.Column("sms", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("billing", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_orders_amount_not_negative")),
        sa.CheckConstraint("email >= 0 AND sms >= 0 AND email + sms > 0", name=op.f("ck_orders_some_credits")),
        sa.ForeignKeyConstraint(["buyer_id"], ["users.id"], name=op.f("fk_orders_buyer_id")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_orders_owner_id")),
        sa.ForeignKeyConstraint(["plan"], ["plans.id"], name=op.f("fk_orders_plan")),
        sa.PrimaryKeyConstraint("org_id", "order_id", name=op.f("pk_orders")),
    )
    op.create_table(
        "owner_changes",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("change_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=72), nullable=False),
        sa.Column("actor_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("old_owner_id", sa.String(length=64), nullable=False),
        sa.Column("new_owner_id", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("version > 0", name=op.f("ck_owner_changes_counted_from_one")),
        sa.ForeignKeyConstraint(["actor_id"], ["users.id"], name=op.f("fk_owner_changes_actor_id")),
        sa.ForeignKeyConstraint(["new_owner_id"], ["users.id"], name=op.f("fk_owner_changes_new_owner_id")),
        sa.ForeignKeyConstraint(["old_owner_id"], ["users.id"], name=op.f("fk_owner_changes_old_owner_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_owner_changes_user_id")),
        sa.PrimaryKeyConstraint("org_id", "change_id", name=op.f("pk_owner_changes")),
        sa.UniqueConstraint("org_id", "user_id", "version", name=op.f("uq_owner_changes_org_id_user_id_version")),
    )
    op.create_table(
        "reversals",
        sa.Column("org_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("reversal_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=72), nullable=False),
        sa.Column("order_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("email", sa.BigInteger(), nullable=False),
        sa.Column("sms", sa.BigInteger(), nullable=False),
        sa.Column("email_debt", sa.BigInteger(), nullable=False),
        sa.Column("sms_debt", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('refund', 'chargeback')", name=op.f("ck_reversals_known_kind")),
        sa.CheckConstraint("email >= 0 AND sms >= 0 AND email + sms > 0", name=op.f("ck_reversals_some_credits")),
        sa.CheckConstraint(
            "email_debt BETWEEN 0 AND email AND sms_debt BETWEEN 0 AND sms",
            name=op.f("ck_reversals_debt_within_reversal"),
        ),
        sa.ForeignKeyConstraint(
            ["org_id", "order_id"], ["orders.org_id", "orders.order_id"], name=op.f("fk_reversals_org_id_order_id")
        ),
        sa.PrimaryKeyConstraint("org_id", "reversal_id", name=op.f("pk_reversals")),
    )


def _create_indexes() -> None:
    op.create_index("ix_audit_marks_whole_at", "audit_marks", ["whole_at"], unique=False)
    op.create_index(
        "ix_charges_due_at",
        "charges",
        ["due_at"],
        unique=False,
        postgresql_where=sa.text("due_at IS NOT NULL"),
        sqlite_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_index(
        "ix_charges_nobodys_sender",
        "charges",
        ["sender"],
        unique=False,
        postgresql_where=sa.text("org_id = 0"),
        sqlite_where=sa.text("org_id = 0"),
    )
    op.create_index(
        "ix_charges_org_id_account_id_created_at", "charges", ["org_id", "account_id", "created_at"], unique=False
    )
    op.create_index(
        "ix_charges_org_id_bulk_id",
        "charges",
        ["org_id", "bulk_id"],
        unique=False,
        postgresql_where=sa.text("bulk_id IS NOT NULL"),
        sqlite_where=sa.text("bulk_id IS NOT NULL"),
    )
    op.create_index(
        "ix_charges_org_id_sender_created_at",
        "charges",
        ["org_id", "sender", "created_at"],
        unique=False,
        postgresql_where=sa.text("account_id IS NOT NULL"),
        sqlite_where=sa.text("account_id IS NOT NULL"),
    )
    op.create_index(
        "ix_charges_refunded_at",
        "charges",
        ["refunded_at"],
        unique=False,
        postgresql_where=sa.text("refunded_at IS NOT NULL"),
        sqlite_where=sa.text("refunded_at IS NOT NULL"),
    )
    op.create_index(
        "ix_charges_unpaid_created_at",
        "charges",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("account_id IS NULL"),
        sqlite_where=sa.text("account_id IS NULL"),
    )
    op.create_index(
        "ix_charges_unknown_since",
        "charges",
        ["unknown_since"],
        unique=False,
        postgresql_where=sa.text("unknown_since IS NOT NULL"),
        sqlite_where=sa.text("unknown_since IS NOT NULL"),
    )
    names_people = sa.text("refunded_at IS NOT NULL AND erased_at IS NULL")
    op.create_index(
        "ix_charges_unerased",
        "charges",
        ["refunded_at"],
        unique=False,
        postgresql_where=names_people,
        sqlite_where=names_people,
    )
    op.create_index(
        "ix_charges_unerased_of_sender",
        "charges",
        ["org_id", "sender", "refunded_at"],
        unique=False,
        postgresql_where=names_people,
        sqlite_where=names_people,
    )
    op.create_index("ix_dead_letters_at", "dead_letters", ["at"], unique=False)
    op.create_index("ix_dead_letters_key", "dead_letters", ["key"], unique=False)
    op.create_index("ix_dead_letters_person", "dead_letters", ["person"], unique=False)
    op.create_index("ix_leases_until", "leases", ["until"], unique=False)
    op.create_index("ix_refusals_at", "refusals", ["at"], unique=False)
    op.create_index("ix_refusals_key", "refusals", ["key"], unique=False)
    op.create_index("ix_refusals_person", "refusals", ["person"], unique=False)
    op.create_index("ix_refusals_task_id", "refusals", ["task_id"], unique=False)
    op.create_index("ix_usage_days_org_id_sender_day", "usage_days", ["org_id", "sender", "day"], unique=False)
    op.create_index("ix_decisions_org_id_job_id", "decisions", ["org_id", "job_id"], unique=False)
    op.create_index("ix_users_credit_owner_id", "users", ["credit_owner_id"], unique=False)
    op.create_index("ix_adjustments_at", "adjustments", ["at"], unique=False)
    op.create_index("ix_adjustments_org_id_owner_id_at", "adjustments", ["org_id", "owner_id", "at"], unique=False)
    op.create_index("ix_orders_at", "orders", ["at"], unique=False)
    op.create_index("ix_orders_org_id_buyer_id_at", "orders", ["org_id", "buyer_id", "at"], unique=False)
    op.create_index("ix_orders_org_id_owner_id_at", "orders", ["org_id", "owner_id", "at"], unique=False)
    op.create_index("ix_reversals_at", "reversals", ["at"], unique=False)
    op.create_index("ix_reversals_org_id_order_id", "reversals", ["org_id", "order_id"], unique=False)
