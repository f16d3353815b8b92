"""Digests: by its digest a job that comes again is told from another job under the same id.

A digest is a version and a SHA-256. Digests are stored, and a job may come again after an upgrade, so what they cover
never changes within a version: golden examples in the tests pin it.
"""

import json
from binascii import b2a_base64
from hashlib import sha256
from typing import Any

from pydantic_core import to_json

from models.messages.addresses import normalize_addresses, normalize_mailbox


def digest(task: str, given: dict[str, Any]) -> str:
    """Return the digest of a message of `task`: the SHA-256, in base64, of the canonical JSON (RFC 8785) of both.

    `given` is what `TaskMessage.given` returns.
    """
    return "2:" + b2a_base64(sha256(to_json([task, given])).digest(), newline=False).decode()


def same_digest(stored: str, task: str, given: dict[str, Any]) -> bool:
    """Whether `stored`, of any version, is the digest of this message."""
    return stored == (digest(task, given) if ":" in stored else _digest_of_version_1(task, given))


# -- version 1 --------------------------------------------------------------------------------------------------------
# Its digests carry no version. It can go in 0.3.0: by then no job comes again that was charged before version 2.


def _digest_of_version_1(task: str, given: dict[str, Any]) -> str:
    covered = [task, _covered_by_version_1(task, given)]
    document = json.dumps(covered, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return sha256(document.encode()).hexdigest()


def _covered_by_version_1(task: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return what was given with the defaults of that time, and with addresses in their normal form."""
    if task == "credits.purchase":
        given = {"credit_to": "owner", **given}
        if "credits" in given:
            given["credits"] = {"email": 0, "sms": 0, **given["credits"]}
    if task.endswith(".send_many"):
        given = {**given, "recipients": [{"values": {}, **recipient} for recipient in given["recipients"]]}
    if task == "email.send_many":
        for recipient in given["recipients"]:
            recipient["to"] = normalize_mailbox(recipient["to"])
    return normalize_addresses(given) if task.startswith("email.") else given
