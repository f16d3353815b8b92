"""Signatures of messages: which are accepted, which refused, and what the keys of producers allow."""

import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from models.errors import Reason, Refused
from models.messages.base import Json
from models.messages.signatures import ProducerKey
from tasks.client import signature
from worker.broker.signatures import SignaturePolicy
from worker.broker.signing import BY_US, SignAs, signed_headers
from worker.producer_keys import KeysFileError, KnownKey, ProducerKeys, changed_keys, read_keys, write_keys

SECRET = "a secret of thirty-two characters or more"
NOW = 1_800_000_000
BODY = b'[[{"sender": "mary"}], {}, {}]'
ANY = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()) | st.dictionaries(
    st.sampled_from(("key", "at", "mac", "x")), st.none() | st.integers() | st.text() | st.booleans()
)  # fmt: skip


def known(key_id: str = "shop", **fields: Any) -> KnownKey:
    return KnownKey(id=key_id, secret=SECRET, created_at=datetime(2026, 11, 30, tzinfo=UTC), **fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "producer-keys.json"


@pytest.fixture
def policy(path: Path) -> Callable[..., SignaturePolicy]:
    """Give a function that makes a policy with these keys, for which every send must be signed."""

    def make(*keys: KnownKey, queues: tuple[str, ...] = ("email", "billing")) -> SignaturePolicy:
        write_keys(path, {key.id: key for key in keys or (known(),)})
        return SignaturePolicy(ProducerKeys(path), queues, now=lambda: NOW)

    return make


def headers(at: int = NOW, **fields: Any) -> Json:
    """Give the headers of a message that is signed as it must be, with what is said in `fields` changed."""
    signed = ProducerKey("shop", SECRET).sign(task="email.send", task_id="task-1", body=BODY, at=at)
    return {"task": "email.send", "id": "task-1", "postage": signed, **fields}


def check(policy: SignaturePolicy, given: Json, body: bytes = BODY, task: str = "email.send") -> KnownKey | None:
    return policy.check(task, given, lambda: body, json.loads(body)[0])


def test_the_mac_is_the_one_that_producers_are_told_of() -> None:
    lines = b"postage-1\nshop\nemail.send\ntask-1\n1800000000\n" + BODY

    expected = hmac.new(SECRET.encode(), lines, hashlib.sha256).hexdigest()

    assert headers()["postage"] == {"key": "shop", "at": NOW, "mac": expected}


def test_a_signed_message_is_accepted(policy: Callable[..., SignaturePolicy]) -> None:
    assert check(policy(), headers()) == known()


def test_an_unsigned_one_is_refused_only_where_it_must_be_signed(policy: Callable[..., SignaturePolicy]) -> None:
    unsigned = {"task": "email.send", "id": "task-1"}

    assert check(policy(queues=("billing",)), unsigned) is None
    with pytest.raises(Refused, match="must be signed") as refused:
        check(policy(), unsigned)

    assert refused.value.reason is Reason.NOT_PERMITTED


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ({"id": "task-2"}, BODY),
        ({"id": "task-1\n"}, BODY),
        ({}, BODY.replace(b"mary", b"john")),
        ({}, BODY + b" "),
        ({"postage": {**headers()["postage"], "at": NOW - 1}}, BODY),
        ({"postage": {**headers()["postage"], "mac": "é" * 64}}, BODY),
        ({"postage": {**headers()["postage"], "key": "postage"}}, BODY),
        (headers(at=NOW - 604_801), BODY),
        (headers(at=NOW + 301), BODY),
    ],
)
def test_what_was_changed_or_is_too_old_is_refused(
    policy: Callable[..., SignaturePolicy], fields: Json, body: bytes
) -> None:
    with pytest.raises(Refused):
        check(policy(known(), known("postage")), {**headers(), **fields}, body)


def test_another_task_is_not_covered(policy: Callable[..., SignaturePolicy]) -> None:
    with pytest.raises(Refused, match="does not fit"):
        check(policy(), headers(), task="email.send_many")


@given(signature=ANY)
def test_no_header_makes_the_check_fail(tmp_path_factory: pytest.TempPathFactory, signature: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any-header.json"
    write_keys(path, {"shop": known()})

    with pytest.raises(Refused):
        check(SignaturePolicy(ProducerKeys(path), ("email",), now=lambda: NOW), headers(postage=signature))


@pytest.mark.parametrize(
    ("bounds", "is_allowed"),
    [
        ({"tasks": ("email.send",)}, True),
        ({"tasks": ("sms.send",)}, False),
        ({"senders": ("mary",)}, True),
        ({"senders": ("john",)}, False),
        ({"revoked_at": datetime(2026, 11, 30, tzinfo=UTC)}, False),
    ],
)
def test_a_key_allows_what_it_is_for(
    policy: Callable[..., SignaturePolicy], bounds: dict[str, Any], is_allowed: bool
) -> None:
    bound = policy(known(**bounds))

    if is_allowed:
        assert check(bound, headers()) is not None
    else:
        with pytest.raises(Refused):
            check(bound, headers())


def test_everybody_whom_a_job_names_must_be_among_the_senders(policy: Callable[..., SignaturePolicy]) -> None:
    """A cancellation names an actor and a sender."""
    body = b'[[{"actor": "mary", "sender": "john"}], {}, {}]'
    signed = ProducerKey("shop", SECRET).sign(task="messages.cancel", task_id="task-1", body=body, at=NOW)

    with pytest.raises(Refused, match="some people only"):
        check(policy(known(senders=("mary",))), headers(postage=signed), body, "messages.cancel")


@given(st.dictionaries(st.text(), ANY, max_size=4))
def test_the_client_signs_the_body_that_celery_writes(given: Json) -> None:
    app = Celery("producer", set_as_current=False)
    message = app.amqp.as_task_v2("task-1", "email.send", (given,), {})  # type: ignore[attr-defined]
    with app.producer_or_acquire() as producer:
        body, _, _ = producer._prepare(message.body, "json", None, None, None, {})
    key = ProducerKey("shop", SECRET)

    signed = signature(key, "email.send", "task-1", given)["postage"]

    assert key.has_signed(signed, task="email.send", task_id="task-1", body=body.encode())


def test_postage_signs_what_only_its_own_code_can_mark(path: Path) -> None:
    write_keys(path, {"postage": known("postage")})
    keys = ProducerKeys(path)
    message = {"task": "email.resume", "id": "task-1"}

    signed = signed_headers({**message, **BY_US}, "[]", keys)["postage"]
    of_a_producer = signed_headers({**message, "postage": {"key_id": "postage"}}, "[]", keys)["postage"]

    assert known("postage").signing.has_signed(signed, task="email.resume", task_id="task-1", body=b"[]")
    assert of_a_producer == {"key_id": "postage"}
    assert "postage" not in signed_headers({**message, "postage": SignAs("gone")}, "[]", keys)


def test_a_new_key_counts_at_once_and_a_revoked_one_for_a_second(path: Path) -> None:
    clock = [0.0]
    keys = ProducerKeys(path, lambda: clock[0])
    assert keys.usable("shop") is None

    write_keys(path, {"shop": known()})
    assert keys.usable("shop") == known()
    with changed_keys(path) as changed:
        changed["shop"] = known(revoked_at=datetime(2026, 11, 30, tzinfo=UTC))
    clock[0] += 1.0

    assert keys.usable("shop") is None


def test_a_file_that_breaks_leaves_the_keys_that_were_known(path: Path) -> None:
    clock = [0.0]
    keys = ProducerKeys(path, lambda: clock[0])
    write_keys(path, {"shop": known()})
    assert keys.usable("shop")

    path.write_text("{")
    clock[0] += 1.0

    assert keys.usable("shop") == known()


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"keys": 1}', '{"keys": [{"id": "shop"}]}', '{"keys": [], "more": 1}', "\udcff", "{" * 100_000],
    ids=range(7),
)
def test_a_broken_file_is_told_in_a_sentence_without_secrets(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))

    with pytest.raises(KeysFileError, match="not as they must be"):
        read_keys(path)


def test_no_error_shows_a_secret(path: Path) -> None:
    path.write_text('{"keys": [{"id": "shop", "secret": "hush", "created_at": "2026-11-30T00:00:00Z"}]}')

    with pytest.raises(KeysFileError) as error:
        read_keys(path)

    assert "hush" not in str(error.value)
    assert SECRET not in repr(known())
    assert SECRET not in repr(known().signing)


def test_only_its_owner_may_read_the_file(path: Path) -> None:
    write_keys(path, {"shop": known()})

    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]
