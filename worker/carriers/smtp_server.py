"""Which mail server a carrier sends through, and how it does so: the URL's own options."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from worker.carrier_urls import CarrierUrl, CarrierUrlError, is_whole

StartTls = Literal["require", "if-offered", "never"]
_START_TLS: Final[Mapping[str, StartTls]] = {"require": "require", "if-offered": "if-offered", "never": "never"}
MECHANISMS: Final = {"plain": "PLAIN", "login": "LOGIN", "cram-md5": "CRAM-MD5", "xoauth2": "XOAUTH2"}
"""The ways to log in, as the URL and as SMTP writes them."""
_PORTS: Final = {"smtp": 25, "smtps": 465}
_OPTIONS: Final = ("starttls", "auth", "token_file", "token_command", "ehlo", "recipients", "messages")
_EHLO: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[[A-Za-z0-9:.]{3,60}\]")
_RECIPIENTS_MAX: Final = 10_000
_MESSAGES_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpServer:
    """A mail server, and how to talk to it."""

    host: str
    port: int
    tls: bool
    """Whether it is encrypted from the first byte (RFC 8314 section 3)."""
    starttls: StartTls
    user: str | None
    password: str = field(repr=False)
    mechanism: str | None
    """The way to log in; None for the best of what is offered."""
    token_file: Path | None
    token_command: tuple[str, ...]
    ehlo: str | None
    """Our name in the greeting; None for that of this machine."""
    recipients: int
    """Most recipients of a transaction."""
    messages: int
    """Most messages on a connection."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """What is never repeated, whoever says it."""
        return tuple(secret for secret in (self.password, self.user) if secret)


def read_smtp_server(url: CarrierUrl) -> SmtpServer:
    """Return the mail server that a URL names.

    Raises
    ------
    CarrierUrlError
        If it cannot be used, in a sentence that never repeats the user or the password.

    """
    options = url.options
    _require(url.scheme in _PORTS, "must begin with smtp:// or smtps://")
    _require(url.host, "names no host")
    _require(url.path in ("", "/"), "goes on after host, port and options")
    _require(not url.window, "has a window, but no mail server knows a message again")
    _require(not url.prefixes, "has prefixes, which are for text messages")
    unknown = sorted(set(options) - set(_OPTIONS))
    _require(not unknown, f"has an unknown option; it may have {', '.join(_OPTIONS)}")
    _require("\0" not in f"{url.user}{url.password}", "has a user or password that no login can carry")
    token_file, token_command = _tokens(url)
    return SmtpServer(
        host=url.host,
        port=url.port or _PORTS[url.scheme],
        tls=url.scheme == "smtps",
        starttls=_starttls(url),
        user=url.user,
        password=url.password,
        mechanism=_mechanism(url, has_token=token_file is not None or bool(token_command)),
        token_file=token_file,
        token_command=token_command,
        ehlo=_ehlo(options.get("ehlo")),
        recipients=_whole("recipients", options.get("recipients"), _RECIPIENTS_MAX),
        messages=_whole("messages", options.get("messages"), _MESSAGES_MAX),
    )


def _require(condition: object, otherwise: str) -> None:
    if not condition:
        msg = f"The address of the mail server {otherwise}."
        raise CarrierUrlError(msg)


def _starttls(url: CarrierUrl) -> StartTls:
    given = url.options.get("starttls")
    if url.scheme == "smtps":
        _require(given is None, "has the option starttls, but smtps:// is encrypted from the first byte")
        return "never"
    wanted = "if-offered" if given is None else given
    _require(wanted in _START_TLS, "has an unknown value for starttls; it may be require, if-offered or never")
    if url.user is not None and wanted == "if-offered" and not url.is_loopback:
        # Whoever can remove the offer from the greeting can also read the password. Only starttls=never accepts that.
        return "require"
    return _START_TLS[wanted]


def _mechanism(url: CarrierUrl, *, has_token: bool) -> str | None:
    given = url.options.get("auth")
    _require(given is None or given in MECHANISMS, f"has an unknown value for auth; it may be {', '.join(MECHANISMS)}")
    if given is not None or has_token:
        _require(url.user, "names a way to log in, but no user")
    if has_token:
        _require(given in (None, "xoauth2"), "has a token, which only auth=xoauth2 can use")
        _require(not url.password, "has a password and a token: give one of them")
        return MECHANISMS["xoauth2"]
    _require(given != "xoauth2", "has auth=xoauth2, which needs token_file or token_command")
    return None if given is None else MECHANISMS[given]


def _tokens(url: CarrierUrl) -> tuple[Path | None, tuple[str, ...]]:
    file, command = url.options.get("token_file"), url.options.get("token_command")
    _require(file is None or command is None, "has token_file and token_command: give one of them")
    _require(file != "", "has an empty token_file")
    try:
        words = tuple(shlex.split(command or ""))
    except ValueError:
        words = ()
    _require(command is None or words, "has a token_command that cannot be read; it is a program and its arguments")
    return (None if file is None else Path(file)), words


def _ehlo(given: str | None) -> str | None:
    _require(
        given is None or _EHLO.fullmatch(given),
        "has an ehlo that is neither the full name of a host nor an address in brackets",
    )
    return given


def _whole(name: str, given: str | None, most: int) -> int:
    if given is None:
        return most
    _require(is_whole(given, 1, most), f"has a value for {name} that is not a number from 1 to {most}")
    return int(given)
