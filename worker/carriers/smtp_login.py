"""How Postage logs in to a mail server: SMTP AUTH (RFC 4954) with PLAIN, LOGIN, CRAM-MD5 or XOAUTH2."""

import base64
import binascii
import hmac
from collections.abc import Sequence
from typing import Final

from worker.carriers.smtp_connection import SmtpConnection
from worker.carriers.smtp_replies import Reply
from worker.carriers.smtp_server import SmtpServer
from worker.carriers.smtp_tokens import NoTokenError, SmtpTokens

CHALLENGE: Final = 334
OVER_TLS: Final = ("PLAIN", "LOGIN", "CRAM-MD5")
"""Over TLS every server can check a password that is sent to it; for CRAM-MD5 it would have to store the password."""
IN_CLEAR: Final = ("CRAM-MD5", "PLAIN", "LOGIN")
WRONG_MECHANISM: Final = (504, 534)
"""This way to log in is not for this server, or this user; another one may be (RFC 4954 section 6)."""


class LoginError(Exception):
    """The server did not let Postage in. `is_ours`: for what is wrong with us."""

    def __init__(self, detail: str, code: int | None, *, is_ours: bool) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.is_ours = is_ours


async def log_in(connection: SmtpConnection, server: SmtpServer, tokens: SmtpTokens, *, encrypted: bool) -> None:
    """Log in, in the best way that both sides know.

    Raises
    ------
    LoginError
        If the server refuses.
    BrokenError
        If the connection breaks.

    """
    ways = _ways(connection, server, encrypted=encrypted)
    if not ways:
        msg = "The mail server offers no way to log in that Postage may use."
        raise LoginError(msg, None, is_ours=True)
    for mechanism in ways:
        reply = await _try(connection, mechanism, server, tokens)
        if reply.code not in WRONG_MECHANISM:
            break
    if not reply.is_positive:
        # What the server says is not repeated: it might contain the user's name, or more.
        kind = "refused Postage's login" if reply.is_permanent else "does not take Postage's login now"
        raise LoginError(f"The mail server {kind} ({reply.codes}).", reply.code, is_ours=reply.is_permanent)


def _ways(connection: SmtpConnection, server: SmtpServer, *, encrypted: bool) -> Sequence[str]:
    offered = connection.extensions.get("AUTH", "").upper().replace("=", " ").split()
    if server.mechanism is not None:
        wanted: Sequence[str] = (server.mechanism,)
    else:
        wanted = OVER_TLS if encrypted else IN_CLEAR
    return [mechanism for mechanism in wanted if mechanism in offered]


async def _try(connection: SmtpConnection, mechanism: str, server: SmtpServer, tokens: SmtpTokens) -> Reply:
    user, password = (server.user or "").encode(), server.password.encode()
    match mechanism:
        case "PLAIN":  # RFC 4616
            login = _base64(b"\0%b\0%b" % (user, password))
            return await connection.say(f"AUTH PLAIN {login}")
        case "LOGIN":  # draft-murchison-sasl-login-00
            return await _answer(connection, "AUTH LOGIN", user, password)
        case "CRAM-MD5":  # RFC 2195
            return await _cram_md5(connection, user, password)
        case _:
            return await _xoauth2(connection, user, tokens)


async def _answer(connection: SmtpConnection, command: str, *answers: bytes) -> Reply:
    """Send a command, and one answer for each challenge."""
    reply = await connection.say(command)
    for answer in answers:
        if reply.code != CHALLENGE:
            break
        reply = await connection.say(_base64(answer))
    return reply


async def _cram_md5(connection: SmtpConnection, user: bytes, password: bytes) -> Reply:
    reply = await connection.say("AUTH CRAM-MD5")
    if reply.code != CHALLENGE:
        return reply
    try:
        challenge = base64.b64decode(reply.text, validate=True)
    except binascii.Error:
        return await connection.say("*")  # gives up (RFC 4954 section 4)
    digest = hmac.new(password, challenge, "md5").hexdigest().encode()
    return await connection.say(_base64(b"%b %b" % (user, digest)))


async def _xoauth2(connection: SmtpConnection, user: bytes, tokens: SmtpTokens) -> Reply:
    """Show the token; if it is refused, once more with a new one, if there is another."""
    token = await _token(tokens)
    reply = await _show(connection, user, token)
    if not reply.is_permanent:
        return reply
    tokens.refuse(token)
    newer = await _token(tokens)
    return reply if newer == token else await _show(connection, user, newer)


async def _token(tokens: SmtpTokens) -> str:
    try:
        return await tokens.token()
    except NoTokenError as error:
        raise LoginError(str(error), None, is_ours=True) from None


async def _show(connection: SmtpConnection, user: bytes, token: str) -> Reply:
    """Send user and token. A refusal is a challenge first, with the reason, and the answer to it is empty."""
    shown = b"user=%b\x01auth=Bearer %b\x01\x01" % (user, token.encode())
    reply = await connection.say(f"AUTH XOAUTH2 {_base64(shown)}")
    return await connection.say("") if reply.code == CHALLENGE else reply


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
