"""Requests that leave it to the task to end what expired or was revoked, and to put off what is not due for long.

Celery drops a job that has expired or was revoked, and nobody can ever read what became of it. Here the task is told,
refuses the job, and records that. Celery keeps a job with an ETA in the memory of a worker, unacknowledged: after each
visibility timeout it is delivered once more. Here the task stores one that is not due soon in the database.

Postage's own tasks, which beat sends and sends again, are dropped as Celery does it.
"""

from datetime import MAXYEAR, MINYEAR, UTC, datetime, timedelta
from typing import Any, cast

from celery.utils.time import maybe_iso8601
from celery.worker.request import Request
from celery.worker.state import revoked

from models.database.engine import utc_now
from models.errors import Reason, Refused
from models.messages.answer import iso_time
from tasks.base import POSTPONED, REFUSED, Postponement
from worker.broker.parts import EMBEDDED, HEADERS, malformed_parts

POSTPONE_AFTER = timedelta(seconds=60)
"""What is due later than that waits in the database. Less waits in a worker, as the retry after a fault does."""
POSTPONE_MAX = timedelta(days=366)
"""How far ahead a job may be due. Farther is taken for a mistake: its content would be stored for all that time."""

KEPT = {
    **{name: name for name in ("expires", "retries", "reply_to", "root_id", "parent_id", "group_index")},
    "group_id": "group",
    "link": "callbacks",
    "link_error": "errbacks",
    "chain": "chain",
    "chord": "chord",
}
"""Options when a job is sent, and the names that they have in its message."""


class TimedRequest(Request):
    """Celery's request, which tells the task why the job is refused, or when it is due."""

    refusal: Refused | None = None
    """Why the job is refused whatever it asks for, as far as it is known already."""
    postponement: Postponement | None = None
    """When the job is due, if that is so far ahead that the task has to store it."""

    def __init__(self, message: Any, *, headers: Any = None, task: Any = None, **options: Any) -> None:  # noqa: ANN401  Celery's
        headers = dict(message.headers if headers is None else headers)
        self._is_ours = getattr(task, "ends_on_record", False)
        self._refusal_takes_key = getattr(task, "refusal_takes_key", False)
        unreadable = [name for name in ("eta", "expires") if not _is_time(headers.get(name))]
        malformed = malformed_parts(headers, HEADERS)
        # `shadow` is another name for the task, in logs and in Flower: a producer could write anything there.
        headers |= dict.fromkeys(["shadow", *(("eta", "expires") if unreadable else ()), *malformed])
        super().__init__(message, headers=headers, task=task, **options)
        headers = self._request_dict  # type: ignore[attr-defined]
        headers[REFUSED] = headers[POSTPONED] = None  # not for producers to set
        malformed += self._leave_out_malformed()
        too_large = getattr(message, "too_large", None)
        if too_large:
            self.refusal = Refused(Reason.TOO_LARGE, too_large)
        elif unreadable:
            words = f"`{unreadable[0]}` of the task message: must be an ISO 8601 time such as 2026-11-23T10:00:00Z."
            self.refusal = Refused(Reason.INVALID_JOB, words)
        elif malformed:
            words = f"`{malformed[0]}` of the task message: must be what Celery's clients write, or be left out."
            self.refusal = Refused(Reason.INVALID_JOB, words)
        elif self._is_ours and self.eta is not None:
            self._postpone(self.eta)
        if self.refusal is not None:
            self._eta = None  # the task gets it at once
        if self.refusal or self.postponement:
            self._tell_task(self.ending())

    def _leave_out_malformed(self) -> list[str]:
        """Take out what is to be done after the job, where that is malformed; return the names of such parts."""
        args, kwargs, embed = cast("tuple[Any, Any, Any]", self._payload)  # type: ignore[has-type]
        malformed = malformed_parts(embed or {}, EMBEDDED)
        if malformed:
            # As decoded, so that the pool does not decode the body once more.
            self._body = self._payload = (args, kwargs, {**embed, **dict.fromkeys(malformed)})
            self._content_type = self._content_encoding = None
        return malformed

    def _postpone(self, due_at: datetime) -> None:
        """Have the task store a job that is due in more than `POSTPONE_AFTER`, instead of waiting for it here."""
        wait = due_at - utc_now()
        if wait > POSTPONE_MAX:
            words = f"`eta` of the task message: must not be more than {POSTPONE_MAX.days} days ahead."
            self.refusal = Refused(Reason.INVALID_JOB, words)
        elif wait > POSTPONE_AFTER:
            self.postponement = Postponement(due_at.astimezone(UTC), self._options())
        else:
            return
        self._eta = None  # the task gets it at once

    def refuse(self, why: Refused) -> None:
        """Have the task refuse the job at once, for a reason that goes before any other."""
        self.refusal, self.postponement, self._eta = why, None, None
        self._tell_task(why)

    def revoked(self) -> bool:
        """Whether Celery is to drop the job. Only Postage's own are; of any other, the task is told."""
        if not self._is_ours:
            return bool(super().revoked())
        self._tell_task(self.ending())
        return False

    def ending(self) -> Refused | None:
        """Return why the job is refused whatever it asks for, or None if it is to be done."""
        if self.refusal is not None:
            return self.refusal
        if self.id in revoked:
            return Refused(Reason.CANCELLED, "Its Celery task was revoked before a worker began it.")
        if self._has_expired() and (self._refusal_takes_key or not self._came_before()):
            words = f"It expired at {iso_time(self.expires)}, and was not begun by then."
            return Refused(Reason.EXPIRED, words)
        return None

    def _has_expired(self) -> bool:
        if self.expires is None:
            return False
        begins_at = utc_now() if self.postponement is None else self.postponement.due_at
        return begins_at > self.expires

    def _came_before(self) -> bool:
        """Whether an earlier delivery may have done the job already, so that only doing it again finds out."""
        return bool(self._request_dict.get("retries") or self.delivery_info.get("redelivered"))  # type: ignore[attr-defined]

    def _tell_task(self, refusal: Refused | None) -> None:
        told = self._request_dict  # type: ignore[attr-defined]
        told[REFUSED] = None if refusal is None else (str(refusal.reason), refusal.detail)
        told[POSTPONED] = None
        if self.postponement is not None:
            told[POSTPONED] = (self.postponement.due_at.isoformat(), self.postponement.options)

    def _options(self) -> dict[str, Any]:
        """Return what Celery is told when the job is sent again: what came with it, except the time that is over."""
        _, _, embed = cast("tuple[Any, Any, Any]", self._payload)
        given = {**self._request_dict, **(embed or {})}  # type: ignore[attr-defined]
        options = {option: given[name] for option, name in KEPT.items() if given.get(name)}
        if not isinstance(options.get("reply_to"), str):
            options.pop("reply_to", None)
        return options


def _is_time(value: object) -> bool:
    """Whether a header is left out, or holds a time of which every calculation is possible."""
    if value is None:
        return True
    if not isinstance(value, str):
        return False
    try:
        time = maybe_iso8601(value)
    except (ValueError, OverflowError):
        return False
    return time is not None and MINYEAR < time.year < MAXYEAR  # in any time zone
