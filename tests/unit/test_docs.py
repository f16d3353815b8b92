"""The documentation is true: it names every setting, task, field, answer and reason, and its links lead somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.database.engine import Database
from models.errors import Reason
from models.messages.wire import MESSAGES
from models.sends.carrier import Email, Handover, Outcome, Receipt, Sms
from models.sends.routes import Route
from tasks.context import Context
from tasks.engine import DeliveryEngine, Routes
from tasks.queues import ROUTES, Queue
from tests.fakes import answer
from worker.carriers.null import NullCarrier
from worker.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("clients/*/*.md")])
PRODUCERS = (ROOT / "docs/producers.md").read_text()
OPERATING = (ROOT / "docs/operating.md").read_text()

Table = list[dict[str, str]]


def tables(text: str) -> Iterator[Table]:
    """The tables of a Markdown text, each a list of rows by the names of its columns."""
    lines = [*text.splitlines(), ""]
    while lines:
        line = lines.pop(0)
        if not line.startswith("|"):
            continue
        names, rows = cells(line), []
        lines.pop(0)
        while lines[0].startswith("|"):
            rows.append(dict(zip(names, cells(lines.pop(0)), strict=True)))
        yield rows


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|(?![^`]*`[^`|]*\|)", line.strip().strip("|"))]


def table(text: str, first_column: str) -> Table:
    """The one table whose first column has that name."""
    [found] = [rows for rows in tables(text) if rows and next(iter(rows[0])) == first_column]
    return found


def section(task: str) -> str:
    """What docs/producers.md says of a task."""
    found = re.search(rf"^### `{re.escape(task)}`\n(.*?)(?=^##|\Z)", PRODUCERS, re.MULTILINE | re.DOTALL)
    assert found, f"{task} has no section"
    return found[1]


def names(rows: Table) -> list[str]:
    """What the first column names, in backquotes."""
    return [next(iter(row.values())).strip("`") for row in rows]


# -- settings ---------------------------------------------------------------------------------------------------------


def test_every_setting_is_documented_with_its_default() -> None:
    rows = {row["setting"].strip("`"): row["default"].strip("`") for row in table(OPERATING, "setting")}

    assert {
        PREFIX + name.upper(): "" if field.default is None else format_default(field.default)
        for name, field in Settings.model_fields.items()
    } == rows


def format_default(default: Any) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / ".env.example"], ids=lambda path: path.name)
def test_no_other_setting_is_named(document: Path) -> None:
    """A setting that was renamed is renamed everywhere."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}

    assert set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", document.read_text())) <= known | {PREFIX}


# -- the wire ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", MESSAGES)
def test_a_task_is_documented_with_its_fields(task: str) -> None:
    """Every field that the message has and no other, and whether it is needed."""
    documented = {row["field"].strip("`"): row["needed"] for row in table(section(task), "field")}

    assert {
        field.alias or name: "yes" if field.is_required() else "no"
        for name, field in MESSAGES[task].model_fields.items()
    } == documented


@pytest.mark.parametrize("task", MESSAGES)
def test_a_task_is_documented_with_its_queue(task: str) -> None:
    assert f"Queue `{ROUTES[task]}`." in section(task)


def test_no_task_is_documented_that_does_not_exist() -> None:
    assert list(MESSAGES) == re.findall(r"^### `([a-z_.]+)`$", PRODUCERS, re.MULTILINE)


def test_every_reason_is_documented() -> None:
    assert [str(reason) for reason in Reason] == names(table(PRODUCERS, "reason"))


def test_every_queue_is_documented() -> None:
    line = next(line for line in OPERATING.splitlines() if line.startswith("Queues: "))

    assert [str(queue) for queue in Queue] == re.findall(r"`(\w+)`", line)


class PickyCarrier(NullCarrier):
    """Refuses one recipient of an email and takes everything else."""

    async def deliver(self, message: Email | Sms, handover: Handover) -> Receipt:
        assert isinstance(message, Email)
        return Receipt(Outcome.ACCEPTED, refused={message.recipients[0]: "550"})


STORY: list[tuple[str, dict[str, Any]]] = [
    (
        "roles.save",
        {"organization": "acme", "role": "boss", "rights": ["view_user_list", "edit_user", "adjust_credits"]},
    ),
    (
        "users.save",
        {"user_id": "john", "organization": "acme", "role": "boss", "name": "John", "email": "john@example.org"},
    ),
    ("plans.save", {"plan": "small", "name": "Small", "credits": {"email": 9}, "price": 900, "currency": "EUR"}),
    ("credits.purchase", {"order_id": "o", "buyer": "john", "plan": "small", "billing": {"name": "John"}}),
    (
        "credits.reverse",
        {"reversal_id": "r", "order_id": "o", "kind": "refund", "credits": {"email": 1}, "reason": "-"},
    ),
    (
        "credits.adjust",
        {"adjustment_id": "a", "actor": "john", "owner": "john", "credits": {"email": 1}, "reason": "-"},
    ),
    ("credits.set_owner", {"change_id": "c", "actor": "john", "user": "john", "owner": "john"}),
    (
        "email.send",
        {"job_id": "one", "sender": "john", "to": ["a@b.example", "b@b.example"], "subject": "Hello", "text": "Hello"},
    ),
    (
        "email.send_many",
        {
            "job_id": "many",
            "sender": "john",
            "recipients": [{"to": "a@b.example"}],
            "subject": "Hello",
            "text": "Hello",
        },
    ),
    (
        "users.save",
        {"user_id": "jane", "organization": "acme", "role": "boss", "name": "Jane", "email": "jane@example.org"},
    ),
    ("messages.cancel", {"cancel_id": "c", "actor": "john", "sender": "john"}),
    ("users.erase", {"erasure_id": "e", "actor": "john", "user": "jane"}),
    *(
        (f"views.{view}", {"viewer": "john"})
        for view in ("overview", "usage", "orders", "statement", "billing", "users")
    ),
]


@pytest.fixture
def answers(sqlite_url: str) -> Iterator[dict[str, dict[str, Any]]]:
    """What each task answers, in a story that has something to show everywhere."""
    database = Database(sqlite_url)
    routes: Routes = {
        "email": [Route(name="picky", carrier=PickyCarrier())],
        "sms": [Route(name="null", carrier=NullCarrier())],
    }
    context = Context(
        database=database,
        engine=DeliveryEngine(routes, database),
        enqueue=lambda task, given: None,
        enqueue_again=lambda jobs: None,
    )
    answers = {task: answer(context, task, job) for task, job in STORY}
    answers["by message"] = answer(context, "views.usage", {"viewer": "john", "by": "message"})
    answers["an entry"] = answer(context, "views.statement", {"viewer": "john", "entry": "email/4"})
    yield answers
    context.close()


def test_answers_are_documented(answers: dict[str, dict[str, Any]]) -> None:
    """Every field of every answer, and no other."""
    answers.pop("by message")
    of_an_entry = list(answers.pop("an entry"))
    of_sends = names(table(PRODUCERS.partition("### The answer to a send job")[2].partition("\n## ")[0], "answer"))

    assert {"done", "sent", "sending"} == {answer["status"] for answer in answers.values()}
    assert answers["email.send"]["recipients_refused"] == {"a@b.example": "550"}
    assert of_sends == list(answers.pop("email.send_many"))
    assert of_sends[:-1] == list(answers.pop("email.send"))
    for task, fields in answers.items():
        assert names(table(section(task), "answer")) == list(fields), task
    of_a_statement = section("views.statement")
    [account, _] = answers["views.statement"]["accounts"]
    assert names(table(of_a_statement, "entry")) == list(account["entries"][0])
    assert names(table(of_a_statement, "answer"))[:-3] + names(table(of_a_statement, "behind an entry")) == of_an_entry


@pytest.mark.parametrize(
    ("task", "answer", "field", "words"),
    [
        ("views.overview", "views.overview", "plans", ""),
        ("views.usage", "views.usage", "rows", "By day: "),
        ("views.usage", "by message", "rows", "By message: "),
        ("views.orders", "views.orders", "rows", ""),
        ("views.statement", "views.statement", "accounts", ""),
        ("views.statement", "an entry", "messages", "`messages` \\| A list of "),
        ("views.users", "views.users", "rows", ""),
    ],
)
def test_rows_of_views_are_documented(
    task: str, answer: str, field: str, words: str, answers: dict[str, dict[str, Any]]
) -> None:
    """Their fields are named between braces."""
    documented = re.search(words + r"`\{(\w+(?:, \w+)+)\}`", section(task))

    assert documented
    assert list(answers[answer][field][0]) == documented[1].split(", ")


# -- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link names a file that is there, and a heading that it has."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{document.name} links to {target}"


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """The names that headings can be linked by."""
    headings = re.findall(r"^#+ (.+)$", without_code(document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_document_can_be_found() -> None:
    """From the README one gets everywhere."""
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        document = waiting.pop()
        if document in reached or document.suffix != ".md":
            continue
        reached.add(document)
        links = re.findall(r"\]\(([^)#\s]+)", without_code(document.read_text()))
        waiting += [(document.parent / link).resolve() for link in links if "://" not in link]

    on_the_site_only = {ROOT / "docs" / "index.md", *ROOT.glob("docs/project/*.md")}
    assert set(DOCUMENTS) - on_the_site_only <= reached


def test_decisions_are_numbered_without_a_gap() -> None:
    numbers = sorted(int(path.name[:4]) for path in ROOT.glob("docs/decisions/0*.md"))

    assert list(range(1, len(numbers) + 1)) == numbers


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_code_name_what_is_there(document: Path) -> None:
    """A link such as [`settle`](../models/sends/settling.py) names a class or function that the file defines."""
    for name, target in re.findall(r"\[`(\w+)`\]\(([^)\s]+\.py)\)", document.read_text()):
        source = (document.parent / target).resolve().read_text()
        assert re.search(rf"^(class|def) {name}\b", source, re.MULTILINE), f"{target} does not define {name}"
