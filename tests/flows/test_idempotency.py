"""The recipe of docs/idempotency.md, run as it is printed."""

import re
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from tests.flows.deployment import Deployment
from tests.flows.jobs import email_job, new_id

pytestmark = [pytest.mark.xdist_group("idempotency"), pytest.mark.timeout(180)]

DOCUMENT = Path(__file__).parents[2] / "docs" / "idempotency.md"


def test_the_retry_recipe_sends_a_job_once_whatever_its_producer_knows(deployment: Deployment) -> None:
    """The broker seems to be away at first, then the producer crashes and begins anew, and then asks once more."""
    owner, member = deployment.people(email=3)
    [recipe] = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    defined: dict[str, Any] = {}
    exec(recipe.replace("redis://127.0.0.1:6379/0", deployment.settings["broker_url"]), defined)  # type: ignore[call-overload]  # noqa: S102
    app, send_once = defined["app"], defined["send_once"]
    job = email_job(new_id("recipe"), member)
    publish, published = app.send_task, []

    def fail_at_first(task: str, **options: Any) -> Any:
        published.append(task)
        result = publish(task, **options)
        if len(published) <= 2:  # it has arrived, and its producer does not know
            raise OperationalError
        return result

    app.send_task = fail_at_first
    first = send_once("email.send", "email", job, wait_s=0.01)
    again = send_once("email.send", "email", job, wait_s=0.01)
    other = send_once("email.send", "email", {**job, "subject": "Other"}, wait_s=0.01)
    app.close()

    assert published.count("email.send") >= 4
    assert (first["status"], again, other) == ("sent", first, first)
    assert len(deployment.mail_server.mails_of(job["job_id"])) == 1
    assert deployment.remaining(owner)["email"] == 2
