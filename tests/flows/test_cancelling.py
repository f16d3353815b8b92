"""A mistaken campaign is stopped by an operator: each job ends on the record, whether it was sent or not."""

import json
from contextlib import ExitStack

import pytest

from tests.flows.deployment import CommandResult, Deploy, Deployment, run, wait_until
from tests.flows.jobs import email_job, sms_job
from tests.flows.outside import Json
from tests.flows.test_batches import stopped_worker

pytestmark = pytest.mark.timeout(180)


def postage(deployment: Deployment, *arguments: str) -> CommandResult:
    """Run a command with the settings of a deployment."""
    return run(*arguments, cwd=deployment.folder, **deployment.settings)


def printed(result: CommandResult) -> Json:
    answer: Json = json.loads(result.out)
    return answer


def test_what_waits_on_its_queue_is_cancelled_before_a_worker_takes_it(deploy: Deploy) -> None:
    with deploy() as deployment:
        owner, member = deployment.people(email=1000)
        campaign = [f"campaign-{number}" for number in range(250)]

        with stopped_worker(deployment):
            for job_id in campaign:
                deployment.send("email.send", email_job(job_id, member))
            deployment.send("email.send", email_job("wanted", owner))
            deployment.send("email.send_many", bulk_job("bulk", member, 20))
            one = printed(postage(deployment, "cancel", "campaign-3", "--by", "ops", "--json"))
            nothing = postage(deployment, "cancel", "campaign", "--by", "ops")
            cancelled = printed(postage(deployment, "cancel", "--sender", member, "--by", "ops", "--json"))
        ended = deployment.wait_until_final("wanted", "bulk", *campaign)
        deployment.wait_until_idle()

        assert (one["status"], one["cancelled"]) == ("done", 1)
        assert (nothing.code, "no job campaign that waits" in nothing.err) == (1, True)
        assert (cancelled["cancelled"], cancelled["credits"], cancelled["too_late"]) == (269, 0, 0)
        assert {(ended[job].state, ended[job].reason) for job in campaign} == {("refused", "cancelled")}
        assert deployment.message(member, "bulk")["reason"] == "cancelled"
        assert [mail.job_id for mail in deployment.mail_server.mails] == ["wanted"]
        assert deployment.remaining(owner)["email"] == 999
        assert deployment.findings() == []


def test_a_queue_is_purged_and_every_job_is_on_the_record(deploy: Deploy) -> None:
    with deploy() as deployment, ExitStack() as stack:
        owner, member = deployment.people(email=1000, sms=10)
        order = {"order_id": "order", "buyer": owner, "credits": {"email": 5}, "amount": 1, "currency": "EUR"}
        mails = [f"mail-{number}" for number in range(230)]

        with stopped_worker(deployment):
            for job_id in mails:
                deployment.send("email.send", email_job(job_id, member))
            deployment.producer.publish("email", "[]", {"nothing": "here"})
            deployment.send("sms.send", sms_job("text", member))
            purchase = deployment.send("credits.purchase", order)
            asked = stack.enter_context(deployment.producer.asked("views.overview", {"viewer": owner}))
            refused = postage(deployment, "purge", "email", "--by", "ops")  # nobody says yes
            purged = printed(postage(deployment, "purge", "email", "--by", "ops", "--yes", "--json"))
            for queue in ("billing", "views"):
                assert printed(postage(deployment, "purge", queue, "--by", "ops", "--yes", "--json"))["cancelled"] == 1
        ended = deployment.wait_until_final("text", *mails)
        deployment.wait_until_idle()

        assert (refused.code, purged["cancelled"], purged["left"]) == (1, 230, 1)
        assert {(ended[job].state, ended[job].reason) for job in mails} == {("refused", "cancelled")}
        assert [row.reason for row in deployment.refusals([purchase])] == ["cancelled"]
        assert asked.get(timeout=30)["reason"] == "cancelled"
        assert deployment.mail_server.mails == []
        assert deployment.remaining(owner) == {"email": 1000, "sms": 9}
        wait_until(lambda: deployment.redis.zcard("postage.quarantined") == 1, "what cannot be read is quarantined")
        assert deployment.findings() == []


def bulk_job(job_id: str, sender: str, count: int) -> Json:
    """Give a bulk job of so many emails."""
    recipients = [{"to": f"{job_id}-{number}@customer.example"} for number in range(count)]
    return {"job_id": job_id, "sender": sender, "recipients": recipients, "subject": "Hello", "text": "Hello"}
