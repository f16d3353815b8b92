"""`python -m tests.outside_servers DEBS`: emails go through real mail servers, and what arrives is compared.

DEBS is a folder of Debian packages, from which each server is started that it has: Postfix (with sasl2-bin), Exim 4,
OpenSMTPD. It needs root, and mounts in a namespace of its own (`unshare --mount`). The servers encrypt with a
certificate of an authority made for this, ask for a login, and take only so many recipients, connections and messages.
"""

import argparse
import asyncio
import functools
import logging
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog
from rich.console import Console

from models.sends.carrier import Email, Outcome, Receipt
from tests.outside_servers.programs import CONNECTIONS_MAX, INBOX, PASSWORD, SERVERS, UNENCRYPTED, USER, Root
from tests.servers import free_port
from worker.carrier_urls import parse_carrier_url
from worker.carriers import smtp_envelope
from worker.carriers.smtp import SmtpCarrier

say = functools.partial(Console(width=160).print, markup=False, highlight=False)
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))

INSIDE: Final = "POSTAGE_TEST_INSIDE"
EMAILS: Final = 120
CONNECTIONS: Final = 3 * CONNECTIONS_MAX
END_WITHIN_S: Final = 90.0
RECIPIENT: Final = re.compile(rb"^(?:Delivered-To|Envelope-to): *(\S+)", re.IGNORECASE | re.MULTILINE)
ADDED: Final = re.compile(rb"(?:(?:Return-Path|Envelope-to|X-Original-To|Delivered-To|Received|Delivery-date): *"
                          rb"[^\n]*\n(?:[ \t][^\n]*\n)*)*", re.IGNORECASE)  # fmt: skip
"""What servers add in front of a message."""


class Sent:
    """What was composed for each job: a message has its own date and boundaries each time."""

    def __init__(self) -> None:
        self.composed: defaultdict[str, set[bytes]] = defaultdict(set)
        self._compose = smtp_envelope.compose
        smtp_envelope.compose = self._record

    def _record(self, email: Email) -> bytes:
        written = self._compose(email)
        self.composed[email.job_id].add(written)
        return written


def emails() -> list[Email]:
    """Make emails of all kinds: plain, with dots and long lines, in other scripts, with HTML, large, to many."""
    plain = Email(
        job_id="job",
        org_id=1,
        from_name="Ada",
        from_address="ada@people.example",
        to=(),
        cc=(),
        recipients=(),
        subject="Hello",
        text="Hello.\n.\n..two dots\n.From the beginning\nFrom the start\n\n  blanks  \nend",
        html=None,
        reply_to=(),
        headers={},
    )
    kinds = (
        plain,
        replace(plain, text="A line that is long. " * 100),
        replace(plain, subject="Grüße, 日本語", from_name="Ada Lövelace", text="Grüße\n.\n日本語\n" * 20),
        replace(plain, html="<p>.</p>\n.\n<b>Grüße</b>" * 30),
        replace(plain, text="A large message, again and again.\n" * 60_000),
        replace(plain, text=""),
        replace(plain, text="tabs\tand trailing blanks \n\n\n"),
    )
    made = []
    for number in range(EMAILS):
        count = (1, 1, 1, 2, 13)[number % 5]
        to = tuple(f"to{place}.of{number}@people.example" for place in range(count))
        made.append(replace(kinds[number % len(kinds)], job_id=f"job-{number}", to=to, recipients=to))
    return made


async def deliver_all(carrier: SmtpCarrier) -> Counter[str]:
    """Deliver all emails, many at a time, and whoever is put off again. Returns how often each outcome was."""
    seen: Counter[str] = Counter()
    places = asyncio.Semaphore(carrier.capacity)

    async def nothing() -> None:
        """Note nothing."""

    async def deliver(email: Email) -> None:
        until = time.monotonic() + END_WITHIN_S
        while time.monotonic() < until:
            async with places:
                receipt = await carrier.deliver(email, nothing)
            seen[_words(receipt)] += 1
            left = tuple(receipt.deferred) if receipt.outcome is Outcome.ACCEPTED else email.recipients
            if not left or receipt.outcome not in (Outcome.ACCEPTED, Outcome.NOT_NOW):
                return
            email = replace(email, recipients=left)
            await asyncio.sleep(0.3)

    await asyncio.gather(*map(deliver, emails()))
    return seen


def _words(receipt: Receipt) -> str:
    deferred = f", {len(receipt.deferred)} put off" if receipt.deferred else ""
    words = next(iter(receipt.deferred.values()), receipt.detail)
    return f"{receipt.outcome}{deferred} {words}"


def compare(inbox: Path, sent: Sent) -> tuple[int, list[str]]:
    """Compare what has arrived with what was composed. Returns how much is as it should be, and what is not."""
    wanted = {address: email.job_id for email in emails() for address in email.recipients}
    arrived: Counter[str] = Counter()
    wrong = []
    for path in sorted((inbox / "new").glob("*")):
        content = path.read_bytes()
        found = RECIPIENT.search(content)
        address = found[1].decode() if found else "?"
        arrived[address] += 1
        composed = [written.replace(b"\r\n", b"\n") for written in sent.composed[wanted.get(address, "?")]]
        ends = [written for written in composed if content.endswith(written)]
        if not ends or not ADDED.fullmatch(content[: -len(ends[0])]):
            wrong.append(f"{path.name} for {address} is not what was composed: {content[:1500]!r}")
    wrong += [f"{address} has {arrived[address]} copies" for address in wanted if arrived[address] != 1]
    wrong += [f"{address} is nobody's" for address in arrived if address not in wanted]
    return arrived.total(), wrong


def make_certificates(folder: Path) -> ssl.SSLContext:
    """Make an authority and a server's certificate. Returns what trusts only this authority."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=Test authority",
            "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost",
            "-keyout", "server.key", "-out", "server.csr")  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "names", "-out", "server.pem")  # fmt: skip
    return ssl.create_default_context(cafile=folder / "ca.pem")


def try_server(name: str, root: Root, context: ssl.SSLContext) -> list[str]:
    """Send everything through one server. Prints what happened, and returns what was wrong."""
    port = free_port()
    server = SERVERS[name](root, port)
    login = "" if name in UNENCRYPTED else f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}"
    starttls = "require" if login else "never"

    def carrier(login: str, context: ssl.SSLContext | None, **options: object) -> SmtpCarrier:
        more = "".join(f"&{option}={value}" for option, value in options.items())
        address = f"{login}@127.0.0.1:{port}" if login else f"127.0.0.1:{port}"
        url = f"smtp://{address}?starttls={starttls}&connections={CONNECTIONS}{more}"
        return SmtpCarrier(parse_carrier_url(url), timeout_s=20, ssl_context=context)

    async def run() -> list[str]:
        wrong = []
        for _ in range(100):  # while it starts
            fault = await carrier(login, context).find_fault()
            if fault is None:
                break
            await asyncio.sleep(0.2)
        else:
            return [f"cannot log in: {fault}"]
        for mechanism in ("plain", "login", "cram-md5") if login else ():
            said = await carrier(login, context, auth=mechanism).find_fault()
            say(f"    auth={mechanism}: {said or 'logged in'}")
        if login:
            say(f"    wrong password: {await carrier(login + 'x', context).find_fault()}")
            say(f"    unknown authority: {await carrier(login, None).find_fault()}")
        began = time.monotonic()
        sending = carrier(login, context)
        seen = await deliver_all(sending)
        for words, count in seen.most_common(15):
            say(f"    {count:4} {words}")
        await sending.close()
        wanted = sum(len(email.recipients) for email in emails())
        for _ in range(120):  # while it delivers
            if len(list((root.path(INBOX) / "inbox/new").glob("*"))) >= wanted:
                break
            await asyncio.sleep(0.5)
        arrived, differences = compare(root.path(INBOX) / "inbox", sent)
        say(f"    {arrived} of {wanted} copies arrived, {time.monotonic() - began:.1f} s after the first was sent")
        return wrong + differences

    sent = Sent()
    try:
        return asyncio.run(run())
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def main(arguments: Sequence[str]) -> int:
    """Try every server that the packages have. Returns 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.outside_servers", description=__doc__)
    parser.add_argument("packages", type=Path, help="a folder of .deb files")
    parser.add_argument("--server", action="append", choices=list(SERVERS), help="again for more; all if left out")
    asked = parser.parse_args(arguments)
    if INSIDE not in os.environ:
        inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-m"]
        again = [*inside, "tests.outside_servers", *arguments]
        return subprocess.run(again, env={**os.environ, INSIDE: "1"}, check=False).returncode
    failed = 0
    folder = Path(tempfile.mkdtemp(prefix="postage-servers-"))
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    try:
        context = make_certificates(folder)
        for name in asked.server or SERVERS:
            say(f"{name}:")
            root = Root(folder / name, folder)
            root.make(sorted(asked.packages.glob("*.deb")))
            for words in try_server(name, root, context):
                say(f"    WRONG: {words}")
                failed = 1
            if failed:
                say("\n".join((root.folder / "server.log").read_text().splitlines()[-20:]))
    finally:  # nothing in it is deleted one by one: this machine's own files are seen through it
        subprocess.run(["umount", "--lazy", "--recursive", folder], check=True)
        folder.rmdir()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
