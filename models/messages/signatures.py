"""The signature of a task message, which proves which producer made it.

It is a header, `postage`: `{"key": …, "at": …, "mac": …}`, with the id of the producer's key, the time in seconds since
1970, and a MAC (HMAC-SHA-256, RFC 2104, in hexadecimal) of six lines and the body:

    postage-1 ⏎ key ⏎ task ⏎ task id ⏎ at ⏎ body

where ⏎ is one line feed, and the body is the bytes that are on the wire, before they are encoded in base64. So nobody
without the secret can make a message, change its task, id or body, or make an old one new. What may be asked for is
idempotent by its id, so a message that is copied as it is does nothing the second time.
"""

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Any

from models.messages.base import Json

HEADER = "postage"
"""The header of a task message that holds its signature."""
SCHEME = "postage-1"
"""The first line of what is signed: another way of signing will have another name."""


@dataclass(frozen=True, slots=True)
class ProducerKey:
    """A producer's key: its id, which may be shown, and its secret."""

    id: str
    secret: str = field(repr=False)

    def sign(self, *, task: str, task_id: str, body: bytes, at: int) -> Json:
        """Return the header that signs a message; `at` is the time in seconds since 1970."""
        return {"key": self.id, "at": at, "mac": self._mac(task, task_id, body, at)}

    def has_signed(self, given: Any, *, task: str, task_id: str, body: bytes) -> bool:  # noqa: ANN401  off the wire
        """Whether a header off the wire, with `at` a whole number and `mac` a text, is this key's for this message."""
        if "\n" in task or "\n" in task_id:
            return False  # or a line could be moved from one field to the next
        mac = self._mac(task, task_id, body, given["at"])
        return hmac.compare_digest(mac.encode(), given["mac"].encode("utf-8", "replace"))

    def _mac(self, task: str, task_id: str, body: bytes, at: int) -> str:
        lines = "\n".join((SCHEME, self.id, task, task_id, str(at), "")).encode("utf-8", "surrogatepass")
        return hmac.new(self.secret.encode(), lines + body, hashlib.sha256).hexdigest()
