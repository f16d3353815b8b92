"""Signatures of messages that come in, checked against the keys of producers.

A message that is not signed as it must be is refused without its id being taken, so that nobody can use up the ids of
others. Which key a message has had is kept beside it: a retry, or a job that waited in the database, is signed anew
with the same key, and is held to the same bounds. What a producer wants to be sent after a job (`link`, `chain`) is not
signed: the names of tasks and keys in it are the producer's own.
"""

import base64
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from models.errors import Reason, Refused
from models.messages.fields import is_id
from models.messages.signatures import HEADER
from tasks.base import ORGANIZATION
from tasks.job_ids import USER_FIELDS, first_argument, people_in
from tasks.queues import ROUTES
from worker.broker.signing import SignAs, kept_key
from worker.broker.timing import TimedRequest
from worker.producer_keys import OURS, KnownKey, ProducerKeys

AHEAD_S = 300
"""How far the clock of a producer may run ahead of ours, in seconds."""
MAC_MAX = 128
"""Characters of a MAC that are looked at."""


@dataclass(frozen=True, slots=True)
class SignaturePolicy:
    """Which messages must be signed, and with which keys."""

    keys: ProducerKeys
    queues: Collection[str] = ()
    """The queues whose tasks must be signed, wherever they are put."""
    max_age_s: int = 604_800
    now: Callable[[], float] = time.time

    def check(self, task: str, headers: Mapping[str, Any], body: Callable[[], bytes], args: Any) -> KnownKey | None:  # noqa: ANN401
        """Return the key of a task's message, or None if it is not signed and need not be.

        `body` gives its bytes as they were on the wire, and `args` is what they say.

        Raises
        ------
        Refused
            `not_permitted`, if it is not signed as it must be, or asks for what its key may not.

        """
        signature = headers.get(HEADER)
        if ROUTES.get(task) not in self.queues and (signature is None or not self.keys.all()):
            return None  # whoever signs where nothing is checked is not refused for it
        if signature is None:
            _refuse(f"{task} must be signed with a producer's key here: ask for one.")
        key = self._key_of(signature)
        task_id = str(headers.get("id"))
        if not key.signing.has_signed(signature, task=task, task_id=task_id, body=body()):
            _refuse(f"The signature of the key {key.id} does not fit the task, its id, the time and the body.")
        self._require_in_time(signature["at"])
        _require_within_bounds(key, task, args)
        return key

    def _key_of(self, signature: Any) -> KnownKey:  # noqa: ANN401  off the wire
        if not _is_signature(signature):
            _refuse(f'`{HEADER}` of the task message: must be {{"key": …, "at": …, "mac": …}}.')
        key = self.keys.usable(signature["key"])
        if key is None:
            _refuse(f"There is no key {signature['key']} of a producer, or it was revoked: ask for another.")
        return key

    def _require_in_time(self, signed_at: int) -> None:
        age = self.now() - signed_at
        if age > self.max_age_s:
            _refuse(f"It was signed more than {self.max_age_s:,} seconds ago: sign it again, under the same id.")
        if age < -AHEAD_S:
            _refuse("It was signed at a time that has not come yet: set the producer's clock, and sign it again.")


def _is_signature(given: Any) -> bool:  # noqa: ANN401  off the wire
    return (
        isinstance(given, dict)
        and is_id(given.get("key"))
        and type(given.get("at")) is int
        and abs(given["at"]) < 10**12
        and isinstance(given.get("mac"), str)
        and len(given["mac"]) <= MAC_MAX
    )


def _require_within_bounds(key: KnownKey, task: str, args: Any) -> None:  # noqa: ANN401
    """Make sure that a key's producer may ask for this. Its organization is looked up later (tasks/producers.py)."""
    if key.tasks is not None and task not in key.tasks:
        _refuse(f"The key {key.id} is not for {task}, only for {', '.join(key.tasks)}.")
    if key.senders is None:
        return
    given = first_argument(args)
    named = people_in(given) if isinstance(given, dict) else []
    if not named or not all(name in key.senders for name in named):
        fields = ", ".join(f"`{field}`" for field in USER_FIELDS)
        _refuse(f"The key {key.id} is for some people only, who must be named as {fields}.")


def _refuse(sentence: str) -> NoReturn:
    raise Refused(Reason.NOT_PERMITTED, sentence)


def wire_body(message: Any) -> bytes:  # noqa: ANN401  kombu's
    """Return the bytes of a message's body as the producer has signed them, even if they were inflated since."""
    raw = getattr(message, "_raw", None)
    body = message.body if raw is None else raw["body"]
    if raw is not None and (raw.get("properties") or {}).get("body_encoding") == "base64":
        return base64.b64decode(body)
    return body if isinstance(body, bytes) else str(body).encode("utf-8", "surrogatepass")


class SignedRequest(TimedRequest):
    """Celery's request, refused if it is not signed as it must be. Its key is remembered for when it is sent again."""

    organization: str | None = None
    """The organization to which the producer's key is bound, if it is."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  Celery's
        super().__init__(*args, **options)
        policy = getattr(self.app, "signature_policy", None)
        if policy is not None:
            self._check_signature(policy)

    def _check_signature(self, policy: SignaturePolicy) -> None:
        request: Any = self
        told = request._request_dict  # noqa: SLF001  the only way to it
        key_id = OURS
        try:
            key = policy.check(request.task.name, told, lambda: wire_body(request.message), request._args)  # noqa: SLF001
        except Refused as why:
            self.refuse(why)
        else:
            if key is not None:
                key_id, self.organization = key.id, key.organization
        told[HEADER] = None if self.refusal else SignAs(key_id)
        told[ORGANIZATION] = self.organization
        if self.postponement is not None:
            self.postponement.options.update(kept_key(key_id))
