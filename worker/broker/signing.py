"""Signing what Postage sends itself: where a message is published, its body is known as it will be on the wire."""

import time
from dataclasses import dataclass

from models.messages.base import Json
from models.messages.signatures import HEADER
from worker.producer_keys import OURS, ProducerKeys


@dataclass(frozen=True, slots=True)
class SignAs:
    """Stands in the header of a message that Postage is to sign when it is published, and with which key.

    Only code of this process can put it there: what came off the wire never holds one.
    """

    key_id: str

    def __json__(self) -> None:
        """Return what kombu writes for it where nothing is signed: on a transport that is not ours."""


BY_US = {HEADER: SignAs(OURS)}
"""The headers of a message that Postage sends of its own accord."""


def kept_key(key_id: str) -> Json:
    """Return the option that keeps with a postponed job which key its message was signed with."""
    return {"headers": {HEADER: key_id}}


def as_signed_before(options: Json) -> Json:
    """Return the headers of a postponed job that is sent again, to be signed with the key that it came with."""
    return {HEADER: SignAs(options.get("headers", {}).get(HEADER, OURS))}


def signed_headers(headers: Json, body: str | bytes, keys: ProducerKeys) -> Json:
    """Return the headers of a message that is about to be published, signed if they say so.

    Without the key it stays unsigned, and is refused where it must be signed.
    """
    wanted = headers.get(HEADER)
    if not isinstance(wanted, SignAs):
        return headers
    key = keys.usable(wanted.key_id)
    others = {name: value for name, value in headers.items() if name != HEADER}
    if key is None:
        return others
    signed = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    task, task_id = str(headers.get("task")), str(headers.get("id"))
    return {**others, HEADER: key.signing.sign(task=task, task_id=task_id, body=signed, at=int(time.time()))}
