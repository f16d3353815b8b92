"""Refusals that take no key: what was asked, by whom, and why it was refused; never the contents of the message."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime

from sqlalchemy import Connection, Executable, bindparam, select

from models.database.json_rows import rows_from, rows_param
from models.database.schema import UtcDateTime, refusals
from models.database.statements import insert_for
from models.users.users import organization_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A refusal as it is stored. `key` and `person` are the id and the user that the message named, if it named any."""

    task: str
    task_id: str
    key: str | None
    person: str | None
    reason: str
    detail: str


def record_refusals(connection: Connection, refused: Sequence[Refusal], now: datetime) -> None:
    """Store refusals."""
    if refused:
        parameters = {**rows_param(connection, [asdict(refusal) for refusal in refused], "refused"), "at": now}
        connection.execute(_insert_refusals(connection.dialect.name), parameters)


@functools.cache
def _insert_refusals(dialect: str) -> Executable:
    columns = [field.name for field in fields(Refusal)]
    refused = rows_from(dialect, {name: refusals.c[name].type for name in columns}, "refused")
    asked = (organization_of(refused.c.person).label("org_id"), bindparam("at", type_=UtcDateTime).label("at"))
    rows = select(*(refused.c[name] for name in columns), *asked)
    return insert_for(dialect, refusals).from_select([*columns, "org_id", "at"], rows)
