"""Hundreds of jobs that must be refused, on every task: each is refused with its reason, and the worker goes on."""

import json
from collections import Counter
from typing import Any, Final

import pytest

from models.sends.charges import State
from tests.flows.bad_jobs import bad_jobs, good_jobs
from tests.flows.deployment import Deployment, wait_until
from tests.flows.jobs import email_job, sms_job
from tests.flows.outside import QUEUES

pytestmark = [pytest.mark.xdist_group("bad-jobs"), pytest.mark.timeout(180)]

EACH: Final = 10
"""A good job comes after so many bad ones."""


def test_every_bad_job_is_refused_and_every_good_one_is_done(deployment: Deployment) -> None:
    """Jobs of all fifteen tasks are refused for their own reasons, and the worker is the same process afterwards."""
    owner, member = deployment.people(email=1000, sms=1000)
    plan = {"plan": "bad-input-plan", "name": "Small", "credits": {"email": 1, "sms": 1}, "price": 1, "currency": "EUR"}
    deployment.producer.do("plans.save", plan)
    pid = deployment.worker.pid
    bad = bad_jobs(owner, member)
    assert len(bad) >= 500
    assert {job.task for job in bad} == set(QUEUES)

    good: list[str] = []
    unknown: list[str] = []
    for start in range(0, len(bad), EACH):
        for job in bad[start : start + EACH]:
            deployment.producer.send_raw(job.task, job.args, job.kwargs, task_id=job.task_id)
        unknown.append(_send_good(deployment, "nobody", f"unknown-{start}", start))
        good.append(_send_good(deployment, member, f"good-{start}", start))
    deployment.wait_until_final(*good, *unknown)
    waiting = {job.task_id: job.description for job in bad if not _is_view(job.task)}
    wait_until(
        lambda: not _without_refused(deployment, waiting),
        lambda: f"{len(waiting)} bad jobs are refused: {list(waiting.values())[:40]}",
    )
    deployment.wait_until_idle()

    refusals = deployment.refusals([job.task_id for job in bad])
    reasons = {row.task_id: row.reason for row in refusals}
    reasons |= {job.task_id: _view_answer(deployment, job.task_id)["reason"] for job in bad if _is_view(job.task)}
    wrong = [(job.description, reasons.get(job.task_id)) for job in bad if reasons.get(job.task_id) != job.reason]
    assert wrong == []
    assert Counter(row.task for row in refusals) == Counter(job.task for job in bad if not _is_view(job.task))
    assert all(row.detail for row in refusals)

    charges = deployment.charges([*good, *unknown])
    assert {charges[job_id].state for job_id in good} == {State.SENT}
    assert {(charges[job_id].state, charges[job_id].reason) for job_id in unknown} == {(State.REFUSED, "unknown_user")}
    assert deployment.charges([job["job_id"] for job in good_jobs(owner, member).values() if "job_id" in job]) == {}

    assert deployment.worker.is_running()
    assert deployment.worker.pid == pid
    assert deployment.producer.control("stats")["pid"] == pid
    assert len(good) >= len(bad) / EACH
    assert deployment.remaining(owner) == {
        "email": 1000 - sum("mail" in job_id for job_id in good),
        "sms": 1000 - sum("text" in job_id for job_id in good),
    }
    assert [mail for mail in deployment.mail_server.mails if "bad" in " ".join(mail.recipients)] == []
    assert deployment.findings() == []


def _is_view(task: str) -> bool:
    """Whether a task is a view, whose refusals are written nowhere but in its answer."""
    return task.startswith("views.")


def _view_answer(deployment: Deployment, task_id: str) -> Any:
    """Give the answer of a view, as Celery keeps it for whoever asked."""
    return json.loads(deployment.redis.get(f"celery-task-meta-{task_id}"))["result"]


def _without_refused(deployment: Deployment, waiting: dict[str, str]) -> dict[str, str]:
    """Remove the jobs that were refused meanwhile, and return the rest."""
    for row in deployment.refusals(list(waiting)):
        waiting.pop(row.task_id, None)
    return waiting


def _send_good(deployment: Deployment, sender: str, job_id: str, number: int) -> str:
    """Enqueue an email or a text message, in turn. Returns its id."""
    if number // EACH % 2:
        job_id += "-text"
        deployment.send("sms.send", sms_job(job_id, sender))
    else:
        job_id += "-mail"
        deployment.send("email.send", email_job(job_id, sender))
    return job_id
