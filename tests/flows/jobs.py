"""Jobs as a producer writes them."""

import itertools

from tests.flows.outside import Json

_numbers = itertools.count(1)


def new_id(what: str) -> str:
    """Give an id that no other test uses."""
    return f"{what}-of-test-{next(_numbers)}"


def new_address(name: str) -> str:
    """Give an address that no other test writes to."""
    return f"{name}.{next(_numbers)}@customer.example"


def email_job(job_id: str, sender: str, **fields: object) -> Json:
    """Give the object of `email.send`, to an address of its own."""
    to = f"{job_id}@customer.example"
    return {"job_id": job_id, "sender": sender, "to": to, "subject": "Hello", "text": "Hello", **fields}


def sms_job(job_id: str, sender: str, **fields: object) -> Json:
    """Give the object of `sms.send`."""
    return {"job_id": job_id, "sender": sender, "to": "+4915112345678", "text": "Hello", **fields}
