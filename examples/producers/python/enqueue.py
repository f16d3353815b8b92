# ruff: noqa: INP001, T201  a program on its own, which prints
"""Enqueue an email, and read its outcome. It needs only `pip install "celery[redis]"`, and no code of Postage's.

    python enqueue.py "$BROKER_URL" mary you@example.org

It sends as the user `mary`, whose credits pay. A producer needs neither Postage's routes nor its settings: to enqueue a
task it names the task and its queue, and gives one JSON object.
"""

import argparse
import time
import uuid

from celery import Celery

FINAL = ("sent", "failed", "unknown", "refused")


def main() -> None:
    """Enqueue one email and wait until it is final."""
    parser = argparse.ArgumentParser(description="Enqueue an email with Postage.")
    parser.add_argument("broker", help="redis://[:password@]host:port/0, or redis+socket:///path")
    parser.add_argument("sender", help="the user who sends")
    parser.add_argument("to", help="an address")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds to wait for the outcome")
    given = parser.parse_args()

    # The backend is needed only to read answers. Postage keeps them there for an hour (POSTAGE_RESULT_EXPIRES_S).
    app = Celery(broker=given.broker, backend=given.broker)
    # Made before the job is sent, and kept with it: if the same job is sent again after a crash or a timeout, it has
    # the same id, and is neither charged nor delivered a second time.
    job_id = f"example-{uuid.uuid4().hex[:12]}"
    email = {"job_id": job_id, "sender": given.sender, "to": given.to, "subject": "Hello", "text": "Hello from Python."}
    # argsrepr is what the job's header shows of the arguments. By the sender in it, senders take turns on the queue.
    app.send_task("email.send", args=[email], queue="email", argsrepr=f"(sender={given.sender})")
    print(f"enqueued {job_id}")

    until = time.monotonic() + given.wait
    while True:
        question = {"viewer": given.sender, "job_id": job_id}
        answer = app.send_task("views.message", args=[question], queue="views").get(timeout=30)
        # A job that no worker has taken up yet is not found.
        if answer["status"] in FINAL and answer["reason"] != "not_found":
            break
        if time.monotonic() > until:
            break
        time.sleep(0.5)
    for name in ("status", "reason", "detail", "credits", "paid_by"):
        print(f"{name:8} {answer[name]}")


if __name__ == "__main__":
    main()
