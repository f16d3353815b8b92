"""How a broker is reached: by a URL, which may name several Sentinels, and by options beside it.

The URL of Sentinels is `sentinel://:password@a:26379/0;sentinel://b:26379`.

kombu and Celery read user, password and database number from one of the parts: the first, or the one that they have
turned to after an error. So `complete` writes them into every part. Of a `rediss://` URL that does not say whether the
server's certificate is verified, Celery makes an error, and kombu a connection without TLS. So `complete` says it.
"""

import os
import re
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis.backoff import NoBackoff
from redis.retry import Retry

SCHEMES = ("redis", "rediss", "redis+socket", "sentinel")
SENTINEL_PORT = 26379
"""Where Sentinels listen unless they are told otherwise (redis.io, "High availability with Redis Sentinel")."""
SENTINEL_ANSWER_S = 2
"""How long a Sentinel may take to answer, in seconds, until the next one is asked."""
_SENTINEL = "sentinel://"
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
"""What may stand behind the ? of a rediss:// URL and names a file."""
_TLS_OPTIONS = {
    "ssl_cert_reqs": ("required", "optional", "none", "CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE"),
    "ssl_check_hostname": ("true", "false"),
}
"""What else may stand there, and its values."""


class _NoRetry(Retry):
    """One try, for redis-py. Remote control shows it, because it stands among the options."""

    def __init__(self) -> None:
        super().__init__(NoBackoff(), 0)

    def __json__(self) -> str:
        return "none"


def transport_options(key_prefix: str, sentinel_master: str, sentinel_password: str | None) -> dict[str, Any]:
    """Return what it takes to reach a broker or result backend beside its URL: transport options of kombu's.

    Raises
    ------
    ValueError
        With a sentence, if the prefix is not fit to be one.

    """
    # Without timeouts, a Sentinel whose machine is gone would be waited for for ever. By default redis-py asks each one
    # that is away again and again, for some seconds, before it asks the next.
    sentinel: dict[str, Any] = {
        "socket_timeout": SENTINEL_ANSWER_S,
        "socket_connect_timeout": SENTINEL_ANSWER_S,
        "retry": _NoRetry(),
    }
    if sentinel_password is not None:
        sentinel["password"] = sentinel_password
    return {
        "global_keyprefix": check_prefix(key_prefix),
        "master_name": sentinel_master,
        "sentinel_kwargs": sentinel,
    }


def check_prefix(prefix: str) -> str:
    """Return a prefix of keys that is fit to be one.

    Raises
    ------
    ValueError
        With a sentence, if it is not.

    """
    if re.fullmatch(r"|[A-Za-z0-9._:-]{0,63}[._:-]", prefix) is None:
        msg = "a prefix is up to 64 letters, digits and ._:- and ends in one of ._:- as in shop-1:"
        raise ValueError(msg)
    return prefix


def names_sentinels(url: str) -> bool:
    """Whether a URL names Sentinels, which know where the broker is."""
    return url.startswith(_SENTINEL)


def parts_of(url: str) -> list[SplitResult]:
    """Return the servers that a URL names: the Sentinels, or the one broker.

    Raises
    ------
    ValueError
        If a part is no URL.

    """
    if not names_sentinels(url):
        return [urlsplit(url)]
    named = [part if "://" in part else f"{_SENTINEL}{part}" for part in url.split(";") if part]
    return [urlsplit(part) for part in named]


def complete(url: str) -> str:
    """Return the URL as kombu and Celery need it.

    That is with user, password, port and database number in the part of each Sentinel, and with TLS whose certificates
    are verified unless the URL says otherwise.

    Raises
    ------
    ValueError
        With a sentence that says what to write instead.

    """
    if names_sentinels(url):
        return _complete_sentinels(url)
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        msg = "a broker is redis://…, rediss://…, redis+socket://…, or sentinel://…;sentinel://…"
        raise ValueError(msg)
    if parts.scheme == "redis+socket":
        if not parts.path.strip("/"):
            msg = "it names no socket: write redis+socket:///path/of/the/socket"
            raise ValueError(msg)
        return url
    if not parts.hostname:
        msg = f"it names no host: write {parts.scheme}://host:6379/0"
        raise ValueError(msg)
    if not re.fullmatch(r"(/[0-9]*)?", parts.path) or parts.fragment:
        msg = f"what follows host and port is the number of a database, as in {parts.scheme}://{parts.hostname}:6379/0"
        raise ValueError(msg)
    if parts.scheme == "redis":
        if parts.query:
            msg = "nothing may follow the number of the database; for TLS, write rediss://…"
            raise ValueError(msg)
        return url
    return _complete_tls(url, dict(parse_qsl(parts.query, keep_blank_values=True)))


def _complete_tls(url: str, options: dict[str, str]) -> str:
    """Return a rediss:// URL that says whether the server's certificate is verified."""
    for name, value in options.items():
        if name in _FILES:
            if not os.access(value, os.R_OK):
                msg = f"the file that its {name} names cannot be read: {value}"
                raise ValueError(msg)
        elif name not in _TLS_OPTIONS:
            msg = f"behind a ? it may have {', '.join((*_TLS_OPTIONS, *_FILES))}, joined by &"
            raise ValueError(msg)
        elif value not in _TLS_OPTIONS[name]:
            msg = f"its {name} must be one of {', '.join(_TLS_OPTIONS[name])}"
            raise ValueError(msg)
    if "ssl_cert_reqs" in options:
        return url
    return f"{url.rstrip('?&')}{'&' if options else '?'}ssl_cert_reqs=required"


def _complete_sentinels(url: str) -> str:
    """Return the URL with what one of the Sentinels has in the part of each."""
    parts = parts_of(url)
    if any(f"{part.scheme}://" != _SENTINEL or not part.hostname or part.query or part.fragment for part in parts):
        msg = "each part of it must be sentinel://[user:password@]host:port[/database], with nothing behind (no TLS)"
        raise ValueError(msg)
    user = _only("user and password", {part.netloc.rpartition("@")[0] for part in parts})
    database = _only("database number", {part.path.strip("/") for part in parts})
    if not (database or "0").isdecimal():
        msg = "what follows the address of a Sentinel is the number of the broker's database, as in /0"
        raise ValueError(msg)
    at = f"{user}@" if user else ""
    return ";".join(f"{_SENTINEL}{at}{_address(part)}/{database or 0}" for part in parts)


def without_repeated_passwords(url: str) -> str:
    """Return a complete URL with user and password in the first part alone.

    Celery's result backend needs no more, and its remote control would show all but the first.
    """
    if not names_sentinels(url):
        return url
    first, *others = parts_of(url)
    return ";".join([first.geturl(), *(f"{_SENTINEL}{_address(part)}{part.path}" for part in others)])


def name(url: str, master: str) -> str:
    """Return which broker a URL means, for people: without user and password."""
    first = parts_of(url)[0]
    if names_sentinels(url):
        return f"{master} of the Sentinels {', '.join(_address(part) for part in parts_of(url))}"
    if first.scheme == "redis+socket":
        return unquote(first.path)
    return f"at {first.hostname or 'localhost'}:{first.port or 6379}{first.path.rstrip('/')}"


def _address(part: SplitResult) -> str:
    host = part.netloc.rpartition("@")[2]
    return host if part.port else f"{host.rstrip(':')}:{SENTINEL_PORT}"


def _only(what: str, found: set[str]) -> str:
    """Return the one value that some of the parts have."""
    found = found - {""}
    if len(found) > 1:
        msg = f"its parts name more than one {what}; all Sentinels know the same broker"
        raise ValueError(msg)
    return found.pop() if found else ""
