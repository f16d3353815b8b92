"""What `postage doctor` examines: everything that this installation depends on, side by side, and nothing is changed.

Each check returns findings, each a sentence that says what is wrong and what to do. A check that does not end in time,
or cannot be run, is a finding itself. Nothing is sent: carriers are only greeted, with their login.
"""

import asyncio
import platform
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Literal

from sqlalchemy.engine import make_url

from models.database.engine import Database
from models.errors import OperatorError
from models.messages.fields import Kind
from models.reports.status import last_clean_audit
from models.sends.routes import Route
from models.text import sanitize
from tasks.queues import Queue
from worker import preflight
from worker.app import PostageApp
from worker.broker.unknown_lists import unknown_lists
from worker.carriers.routes import open_routes
from worker.places import carriers_that_send_nowhere
from worker.private_files import OTHERS
from worker.settings import carrier_setting

CHECK_S = 20.0
"""How long a check may take, in seconds. All of them run side by side."""
STEP_S = 4.0
"""How long a carrier may take for one step, in seconds: connecting and a login are four of them."""
AUDITS_MISSED = 3
"""So many audits may be missing before it is called a fault."""
LATE_S = 60.0
"""How long an audit may take besides, in seconds."""
FILES_MAX = 10_000
"""Files that are looked at."""
SHOWN_MAX = 20
"""Queues that nobody consumes, or files, which are named."""

State = Literal["ok", "warning", "fault"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a check has found: that all is well, a warning, or a fault that keeps jobs from being done or kept."""

    check: str
    state: State
    detail: str


@dataclass(frozen=True, slots=True)
class Found:
    """The sentences of one check."""

    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    well: str = ""
    """What is said if there are neither."""


Check = Callable[[PostageApp], Found]


def examine(app: PostageApp, checks: dict[str, Check] | None = None, within_s: float = CHECK_S) -> list[Diagnosis]:
    """Run every check at the same time, and return what they found, in order."""
    running = [(name, _start(check, app)) for name, check in (checks or CHECKS).items()]
    return [finding for name, result in running for finding in _findings(name, _await(result, within_s))]


def _start(check: Check, app: PostageApp) -> "SimpleQueue[Found]":
    """Run a check in a thread that nobody has to wait for when the process ends."""
    result: SimpleQueue[Found] = SimpleQueue()

    def run() -> None:
        try:
            result.put(check(app))
        except OperatorError as error:
            result.put(Found([str(error)]))
        except (*preflight.DATABASE_ERRORS, *preflight.BROKER_ERRORS) as error:
            result.put(Found([f"Not known: {preflight.explain_failure(error, app.settings)}"]))
        except Exception as error:  # noqa: BLE001  one check that cannot be run must not hide the others
            words = sanitize(str(error), 300) or "no words"
            result.put(Found([f"This could not be checked: {type(error).__name__}, {words}."]))

    threading.Thread(target=run, daemon=True).start()
    return result


def _await(result: "SimpleQueue[Found]", within_s: float) -> Found:
    try:
        return result.get(timeout=within_s)
    except Empty:
        return Found([f"No answer within {within_s:g} s: what it depends on hangs, or the network drops it."])


def _findings(check: str, found: Found) -> Sequence[Diagnosis]:
    findings = [Diagnosis(check, "fault", text) for text in found.faults]
    findings += [Diagnosis(check, "warning", text) for text in found.warnings]
    return findings or [Diagnosis(check, "ok", found.well)]


# -- the checks -------------------------------------------------------------------------------------------------------


def check_versions(_app: PostageApp) -> Found:
    """Say what runs here."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("postage", "celery", "kombu", "redis", "sqlalchemy"))
    return Found(well=f"Python {platform.python_version()}, {packages}.")


def check_database(app: PostageApp) -> Found:
    """Check that the database is there, migrated, durable, and has the same clock."""
    settings = app.settings
    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        return Found([f"There is no database at {url.database}: `postage migrate` makes one."])
    verdict = preflight.check_database(settings)
    return Found(verdict.refusals, verdict.warnings, "Reachable, migrated, durable; its clock agrees.")


def check_broker(app: PostageApp) -> Found:
    """Check that broker and result backend are there, keep every job, and have the same clock."""
    verdict = preflight.check_broker(app.settings)
    return Found(verdict.refusals, verdict.warnings, "Reachable, evicts nothing, keeps jobs on disk; its clock agrees.")


def check_email(app: PostageApp) -> Found:
    """Greet each mail server, log in, and leave."""
    return _check_carriers(app, "email", "The mail server takes the login.")


def check_sms(app: PostageApp) -> Found:
    """Ask each gateway for its options, which sends nothing."""
    return _check_carriers(app, "sms", "The gateway answers.")


def _check_carriers(app: PostageApp, kind: Kind, well: str) -> Found:
    impatient = {name: min(getattr(app.settings, name), STEP_S) for name in ("smtp_timeout_s", "sms_timeout_s")}
    routes = open_routes(app.settings.model_copy(update=impatient))[kind]
    warnings = [one for one in carriers_that_send_nowhere(app.settings) if one.startswith(f"{kind}:")]
    faults = asyncio.run(_find_faults(routes))
    named = [f"{route.name}: " if len(routes) > 1 else "" for route in routes]
    return Found(
        [f"{one}{fault} See {carrier_setting(kind)}." for one, fault in zip(named, faults, strict=True) if fault],
        warnings,
        well,
    )


async def _find_faults(routes: Sequence[Route]) -> list[str | None]:
    """Return what is wrong with each carrier, or None. All are asked side by side."""
    try:
        return await asyncio.gather(*(route.carrier.find_fault() for route in routes))
    finally:
        for route in routes:
            await route.carrier.close()


def check_beat(app: PostageApp) -> Found:
    """Check that audits are made, which beat asks for and a worker makes."""
    database = Database(app.settings.database, pool_size=1, wait_s=0)
    try:
        last, now = database.read(last_clean_audit)
    finally:
        database.close()
    if last is None:
        return Found(warnings=["No audit was ever made: run `postage beat`, and a worker for the queue upkeep."])
    if now - last <= timedelta(seconds=AUDITS_MISSED * app.settings.audit_s + LATE_S):
        return Found(well=f"Beat runs: the last audit was at {last:%Y-%m-%d %H:%M:%S}.")
    sentence = (
        f"No audit has ended well since {last:%Y-%m-%d %H:%M:%S}: see that `postage beat` runs, and a worker for the "
        "queue upkeep (without them no retry is made), and whether `postage findings list` shows findings."
    )
    return Found([sentence])


def check_workers(app: PostageApp) -> Found:
    """Check that every queue is consumed by a worker."""
    if not app.settings.remote_control:
        return Found(warnings=["Remote control is off (POSTAGE_REMOTE_CONTROL), so workers cannot be asked."])
    answers = app.control.inspect(timeout=2.0).active_queues() or {}
    if not answers:
        return Found(["No worker answers: run `postage worker`."])
    consumed = {queue["name"] for queues in answers.values() for queue in queues}
    missing = [str(queue) for queue in Queue if queue not in consumed]
    sentence = f"No worker consumes {', '.join(missing)}: run `postage worker`, or one with -Q {','.join(missing)}."
    return Found([sentence] if missing else [], well=f"{len(answers)} answer, and every queue is consumed.")


def check_queues(app: PostageApp) -> Found:
    """Check that no job waits on a queue that no worker ever consumes."""
    with app.connection_for_read() as connection:
        lists, is_complete = unknown_lists(connection.channel())
    sentences = [
        f"Jobs wait on the queue {sanitize(name, 64)}, which no worker consumes ({count}): producers must name one of "
        f"{', '.join(Queue)} (docs/producers.md). Enqueue them again there, and delete that key."
        for name, count in lists[:SHOWN_MAX]
    ]
    if len(lists) > SHOWN_MAX:
        sentences.append(f"And {len(lists) - SHOWN_MAX} more such queues.")
    note = [] if is_complete else ["The broker holds so many keys that not all were looked at for unknown queues."]
    return Found(sentences, note, "No job waits on an unknown queue.")


def check_files(app: PostageApp) -> Found:
    """Check that other users of this machine have no right on the files."""
    folder = app.settings.var
    found = [path for path in islice(chain([folder], folder.rglob("*")), FILES_MAX) if _is_open(path)]
    shown = ", ".join(str(path) for path in found[:SHOWN_MAX])
    sentence = f"Other users have rights on {shown}: chmod -R go-rwx {folder}."
    return Found([], [sentence] if found else [], "Only this user may read them.")


def check_keys(app: PostageApp) -> Found:
    """Check that the keys of producers can be read, if messages must be signed."""
    verdict = preflight.check_keys(app.settings)
    count = len(app.signature_policy.keys.all())
    signed = ", ".join(sorted(app.settings.must_be_signed)) or "nothing"
    return Found(verdict.refusals, verdict.warnings, f"{count} keys of producers; {signed} must be signed.")


def _is_open(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False  # it has just gone
    return not stat.S_ISLNK(mode) and bool(mode & OTHERS)


CHECKS: dict[str, Check] = {
    "versions": check_versions,
    "database": check_database,
    "broker": check_broker,
    "email": check_email,
    "sms": check_sms,
    "workers": check_workers,
    "beat": check_beat,
    "queues": check_queues,
    "files": check_files,
    "keys": check_keys,
}
