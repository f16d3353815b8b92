"""A story in which every task of the contract is asked for its example; the examples hold the answers.

`python -m tests.unit.contract_story` writes the answers anew.
"""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from models.database.engine import Database
from models.database.migrations import migrate
from tests.fakes import NOT_NOW, Clock, FakeCarrier, answer, make_context, run_enqueued
from tests.unit.wire import EXAMPLES, EXAMPLES_FOLDER

Json = dict[str, Any]

AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
MEMBER = {"organization": "acme", "role": "member", "rights": []}
JOHN = {"user_id": "john", "organization": "acme", "name": "John", "email": "john@example.com", "role": "admin"}
MARY = {**JOHN, "user_id": "mary", "name": "Mary", "email": "mary@example.com", "role": "member"}
ORDER_OF_JOHN = {"order_id": "order-1000", "buyer": "john", "plan": "small", "billing": {"name": "Acme BV"}}
LATER = {"job_id": "campaign-7", "sender": "peter", "to": "+31612345678", "text": "Our sale begins."}


def answers_to_examples(database: Database) -> dict[str, Json]:
    """Give what each task answers to its example: first the changes, then the sends, then the views."""
    context = make_context(database, sms=FakeCarrier(NOT_NOW), clock=Clock(AT))
    context = replace(context, email_headers=frozenset({"x-campaign"}))
    found: dict[str, Json] = {}

    def ask(*tasks: str) -> None:
        for task in tasks:
            found[task] = answer(context, task, EXAMPLES[task])

    ask("roles.save")
    answer(context, "roles.save", MEMBER)
    ask("users.save", "plans.save")
    for user in (JOHN, MARY):
        answer(context, "users.save", user)
    answer(context, "credits.purchase", ORDER_OF_JOHN)
    ask("credits.purchase", "credits.reverse", "credits.adjust", "credits.set_owner")
    answer(context, "sms.send", LATER)
    ask("messages.cancel", "users.erase")
    ask("email.send", "sms.send", "email.send_many", "sms.send_many")
    run_enqueued(context)
    ask(*(task for task in EXAMPLES if task.startswith("views.")))
    context.close()
    return found


def write_answers() -> None:
    """Write the answer to each example beside it."""
    with TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/postage.db"
        migrate(url)
        for task, answered in answers_to_examples(Database(url)).items():
            path = Path(EXAMPLES_FOLDER / f"{task}.json")
            whole = json.loads(path.read_text()) | {"answer": answered}
            path.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write_answers()
