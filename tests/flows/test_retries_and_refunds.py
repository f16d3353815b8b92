"""Carriers that say not now, refuse, or break off: what is sent again, what is refunded, and what is unknown."""

import pytest

from models.sends.charges import State
from tests.flows.deployment import Deployment, wait_until
from tests.flows.jobs import email_job, new_address, new_id, sms_job
from tests.flows.outside import DROP

pytestmark = [pytest.mark.xdist_group("retries-and-refunds"), pytest.mark.timeout(180)]


def test_an_email_deferred_by_the_mail_server_is_sent_later(deployment: Deployment) -> None:
    """It is charged once. The job says `retrying` while it waits."""
    owner, member = deployment.people(email=5)
    job_id = new_id("mail")
    deployment.mail_server.will_answer(job_id, *["451 4.3.0 Come back later"] * 3)

    deployment.send("email.send", email_job(job_id, member))
    between = wait_until(lambda: _status_between(deployment, job_id), "the job waits for another attempt")
    charge = deployment.wait_until_final(job_id)[job_id]

    assert between == "retrying"
    assert charge.state is State.SENT
    assert charge.attempts == 4
    assert deployment.mail_server.offers[job_id] == 4
    assert len(deployment.mail_server.mails_of(job_id)) == 1
    assert [move for move in deployment.moves(owner) if job_id in move[0]] == [(f"charge:{job_id}", -1)]
    assert deployment.remaining(owner)["email"] == 4


def _status_between(deployment: Deployment, job_id: str) -> str | None:
    """The status of a job between two attempts; None before the first, and once it is final."""
    charge = deployment.charges([job_id]).get(job_id)
    return "retrying" if charge and charge.state is State.WAITING and charge.attempts else None


def test_a_waiting_job_is_shown_as_retrying(deployment: Deployment) -> None:
    """It stays charged while it waits."""
    owner, member = deployment.people(email=5)
    job_id = new_id("mail")
    deployment.mail_server.will_answer(job_id, *["451 4.3.0 Come back later"] * 3)
    deployment.send("email.send", email_job(job_id, member))

    seen = set()

    def is_sent() -> bool:
        answer = deployment.message(member, job_id)
        seen.add((answer["status"], answer["credits"]))
        return answer["status"] == "sent"

    wait_until(lambda: job_id in deployment.charges([job_id]), "the job is charged")
    wait_until(is_sent, "the job is sent")

    assert {status for status, _ in seen} <= {"sending", "retrying", "sent"}
    assert ("retrying", 1) in seen
    assert {credits_ for _, credits_ in seen} == {1}
    assert deployment.remaining(owner)["email"] == 4


def test_an_email_refused_for_good_gives_its_credits_back(deployment: Deployment) -> None:
    """They go back to the pool that paid."""
    owner, member = deployment.people(email=5)
    job_id = new_id("mail")
    deployment.mail_server.will_answer(job_id, "550 5.7.1 Looks like spam")

    deployment.send("email.send", email_job(job_id, member, to=[new_address("a"), new_address("b")]))
    deployment.wait_until_final(job_id)

    answer = deployment.message(member, job_id)
    assert (answer["status"], answer["reason"]) == ("failed", "carrier_refused")
    assert (answer["credits"], answer["paid_by"]) == (0, owner)
    assert answer["detail"]
    assert deployment.mail_server.offers[job_id] == 1
    assert deployment.mail_server.mails_of(job_id) == []
    assert deployment.moves(owner)[-2:] == [(f"charge:{job_id}", -2), (f"refund:{job_id}", 2)]
    assert deployment.remaining(owner)["email"] == 5


def test_one_refused_recipient_of_three_is_named_and_refunded(deployment: Deployment) -> None:
    """The other two get the email, once."""
    owner, member = deployment.people(email=5)
    good, gone, fine = new_address("good"), new_address("gone"), new_address("fine")
    deployment.mail_server.will_answer_recipient(gone, "550 5.1.1 No such mailbox")
    job_id = new_id("mail")

    deployment.send("email.send", email_job(job_id, member, to=[good, gone], bcc=fine))
    deployment.wait_until_final(job_id)

    answer = deployment.message(member, job_id)
    assert (answer["status"], answer["reason"], answer["credits"]) == ("sent", "recipient_refused", 2)
    assert list(answer["recipients_refused"]) == [gone]
    assert [mail.recipients for mail in deployment.mail_server.mails_of(job_id)] == [[good, fine]]
    assert deployment.moves(owner)[-2:] == [(f"charge:{job_id}", -3), (f"refund:{job_id}", 1)]
    assert deployment.ask("views.usage", {"viewer": owner})["total"] == {"email": 2, "sms": 0}


def test_an_email_whose_every_recipient_is_refused_fails(deployment: Deployment) -> None:
    """All its credits go back."""
    owner, member = deployment.people(email=5)
    gone = [new_address("gone"), new_address("gone")]
    for address in gone:
        deployment.mail_server.will_answer_recipient(address, "550 5.1.1 No such mailbox")
    job_id = new_id("mail")

    deployment.send("email.send", email_job(job_id, member, to=gone))
    deployment.wait_until_final(job_id)

    answer = deployment.message(member, job_id)
    assert (answer["status"], answer["reason"], answer["credits"]) == ("failed", "recipient_refused", 0)
    assert sorted(answer["recipients_refused"]) == sorted(gone)
    assert deployment.mail_server.offers[job_id] == 0
    assert deployment.remaining(owner)["email"] == 5


def test_an_email_is_unknown_when_the_connection_breaks_after_the_dot(deployment: Deployment) -> None:
    """The server may have taken it, so it stays charged, and neither a sweep nor the same job sends it again."""
    owner, member = deployment.people(email=5)
    job_id = new_id("mail")
    deployment.mail_server.will_answer(job_id, DROP)
    job = email_job(job_id, member)

    deployment.send("email.send", job)
    wait_until(lambda: _is_in_state(deployment, job_id, State.UNKNOWN), "the job is unknown")
    deployment.send("email.send", job)
    later = new_id("mail")
    deployment.mail_server.will_answer(later, "451 4.3.0 Come back later", "451 4.3.0 Come back later")
    deployment.send("email.send", {**job, "job_id": later})
    deployment.wait_until_final(later)  # so that there were at least two sweeps
    deployment.wait_until_idle()

    answer = deployment.message(member, job_id)
    assert (answer["status"], answer["credits"], answer["paid_by"], answer["attempts"]) == ("unknown", 1, owner, 1)
    assert answer["detail"]
    assert deployment.mail_server.offers[job_id] == 1
    assert [move for move in deployment.moves(owner) if job_id in move[0]] == [(f"charge:{job_id}", -1)]


def _is_in_state(deployment: Deployment, job_id: str, state: State) -> bool:
    charge = deployment.charges([job_id]).get(job_id)
    return charge is not None and charge.state is state


def test_a_gateway_that_says_not_now_is_asked_again_with_the_same_key(deployment: Deployment) -> None:
    """The message is charged once, and accepted once."""
    owner, member = deployment.people(sms=5)
    job_id = new_id("text")
    deployment.gateway.will_answer(job_id, 503, 429)

    deployment.send("sms.send", sms_job(job_id, member))
    charge = deployment.wait_until_final(job_id)[job_id]

    assert charge.state is State.SENT
    assert [(post.key, post.status) for post in deployment.gateway.posts_of(job_id)] == [
        (f"{job_id}@{charge.org_id}", status) for status in (503, 429, 200)
    ]
    assert len({str(post.text) for post in deployment.gateway.posts_of(job_id)}) == 1
    assert [move for move in deployment.moves(owner, "sms") if job_id in move[0]] == [(f"charge:{job_id}", -1)]


def test_a_text_message_refused_by_the_gateway_gives_its_credits_back(deployment: Deployment) -> None:
    """It is not offered again."""
    owner, member = deployment.people(sms=5)
    job_id = new_id("text")
    deployment.gateway.will_answer(job_id, 400)

    deployment.send("sms.send", sms_job(job_id, member))
    deployment.wait_until_final(job_id)

    answer = deployment.message(member, job_id)
    assert (answer["status"], answer["reason"], answer["credits"]) == ("failed", "carrier_refused", 0)
    assert len(deployment.gateway.posts_of(job_id)) == 1
    assert deployment.moves(owner, "sms")[-2:] == [(f"charge:{job_id}", -1), (f"refund:{job_id}", 1)]
    assert deployment.remaining(owner)["sms"] == 5


@pytest.mark.parametrize("kind", ["email", "sms"])
def test_a_job_fails_when_its_attempts_are_exhausted(deployment: Deployment, kind: str) -> None:
    """The deployment makes four attempts; then the credits go back."""
    owner, member = deployment.people(email=5, sms=5)
    job_id = new_id(kind)
    if kind == "email":
        deployment.mail_server.will_answer(job_id, *["451 4.3.0 Come back later"] * 9)
        deployment.send("email.send", email_job(job_id, member))
    else:
        deployment.gateway.will_answer(job_id, *[503] * 9)
        deployment.send("sms.send", sms_job(job_id, member))
    deployment.wait_until_final(job_id)

    answer = deployment.message(member, job_id)
    assert (answer["status"], answer["reason"], answer["credits"]) == ("failed", "carrier_unavailable", 0)
    assert answer["attempts"] == 4
    offers, posts = deployment.mail_server.offers[job_id], deployment.gateway.posts_of(job_id)
    assert (offers if kind == "email" else len(posts)) == 4
    assert deployment.remaining(owner) == {"email": 5, "sms": 5}
