# mypy: disable-error-code="attr-defined,misc,no-untyped-call,type-arg"
# kombu is only partly typed.
"""Messages as they come off the wire: a body is read up to a limit, and what can be no message is told apart."""

import base64
import json
import sys
from typing import Any

from kombu.transport import virtual

from worker.broker import json_codec
from worker.broker.sizes import TooLargeError, check_size, ids_in, inflate


class JsonMessage(virtual.Message):
    """A message whose body is inflated up to a limit, and decoded directly if it is JSON.

    kombu inflates whatever it is given, and its detours take longer than the decoding.
    """

    too_large: str | None = None
    """Why the body cannot be read, in a sentence. Then what can be read are the ids in it."""

    def __init__(self, payload: Any, channel: Any = None, **options: Any) -> None:  # noqa: ANN401  kombu's
        headers = payload.get("headers")
        compression = headers.get("compression") if isinstance(headers, dict) else None
        plain = {**payload, "headers": {**headers, "compression": None}} if compression else payload
        super().__init__(plain, channel=channel, **options)
        self._raw = payload  # as it came, to be given back or quarantined
        if self.errors or not self.body:
            return
        body = self.body if isinstance(self.body, bytes) else self.body.encode("utf-8", "surrogatepass")
        try:
            if compression:
                body = inflate(body, str(compression), channel.body_max)
            check_size(body, channel.body_max)
            self.body: Any = body
        except TooLargeError as error:
            self.too_large = str(error)
            self.body = json.dumps([[ids_in(body)], {}, {}]).encode()
            self.content_type, self.content_encoding = json_codec.JSON, "utf-8"
        except ValueError:
            self.errors = [sys.exc_info()]

    def _decode(self) -> Any:  # noqa: ANN401  JSON
        if self.body and (self.content_type, self.content_encoding) == (json_codec.JSON, "utf-8"):
            return json_codec.decode(self.body)
        return super()._decode()


def is_published_message(data: bytes) -> bool:
    """Whether kombu can make a message of what somebody has published: a control message, or events."""
    try:
        message = json_codec.decode(data)
        properties = message["properties"]
        body = message["body"]
        if properties.get("body_encoding") == "base64":
            base64.b64decode(body)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    return (
        isinstance(properties.get("delivery_tag"), str)
        and isinstance(properties.get("delivery_info"), dict)
        and properties.get("body_encoding") in (None, "base64")
        and isinstance(body, str)
        and isinstance(message.get("headers"), dict | None)
        and all(isinstance(message.get(name), str | None) for name in ("content-type", "content-encoding"))
    )
