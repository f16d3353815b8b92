"""Answers as people read them: tables and short lines."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.context import Json

STYLES = {"sent": "green", "done": "green", "refused": "yellow", "failed": "red", "unknown": "magenta"}


def table(title: str, *columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """A table in the style of the house; the columns in `numbers` are set flush right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return made


def coloured(status: str) -> Text:
    """A status in its colour."""
    return Text(status, style=STYLES.get(status, "cyan"))


def moment(instant: str | None) -> str:
    """An ISO 8601 time to the second, in UTC like everything here."""
    return (instant or "")[: len("2026-11-23T10:00:00")].replace("T", " ")


def _reminder(console: Console, answer: Json) -> None:
    if answer.get("reminder"):
        console.print(Text(answer["reminder"], style="italic cyan"))


def _more(console: Console, answer: Json) -> None:
    if answer.get("more"):
        console.print(f"More: --page {answer['page'] + 1}")


def message(console: Console, answer: Json) -> None:
    """What became of one send job."""
    console.print(answer["job_id"], coloured(answer["status"]), answer.get("reason") or "")
    if answer.get("detail"):
        console.print(Text(answer["detail"]))
    if answer.get("paid_by"):
        console.print(f"{answer['credits']} credits paid by {answer['paid_by']}, {answer['attempts']} attempts")
    for state, count in (answer.get("messages") or {}).items():
        console.print(f"  {count} {state}")
    for address, words in (answer.get("recipients_refused") or {}).items():
        console.print(Text(f"  refused {address}: {words}"))


def purchase(console: Console, answer: Json) -> None:
    """A purchase."""
    bought = answer["credits"]
    console.print(
        f"{answer['order_id']}: {bought['email']} email and {bought['sms']} SMS credits for {answer['owner']}, "
        f"bought by {answer['buyer']}."
    )


def change(console: Console, answer: Json) -> None:
    """A change of credit owner."""
    console.print(f"{answer['change_id']}: {answer['user']} now spends the credits of {answer['owner']}.")


def overview(console: Console, answer: Json) -> None:
    """Remaining credits and plans."""
    _reminder(console, answer)
    credits_left = table(f"Credits of {answer['owner']}", "kind", "remaining", numbers=("remaining",))
    for kind, remaining in answer["remaining"].items():
        credits_left.add_row(kind, str(remaining))
    console.print(credits_left)
    if answer["plans"]:
        plans = table("Plans", "plan", "name", "orders", "last bought", numbers=("orders",))
        for plan in answer["plans"]:
            plans.add_row(plan["plan"], plan["name"], str(plan["orders"]), moment(plan["last_at"]))
        console.print(plans)


def usage(console: Console, answer: Json) -> None:
    """Credits spent."""
    _reminder(console, answer)
    total = answer["total"]
    title = f"Usage of {answer['owner']}: {total['email']} email, {total['sms']} SMS"
    if answer["by"] == "message":
        rows = table(title, "at", "job", "user", "kind", "credits", "status", "paid by", numbers=("credits",))
        for row in answer["rows"]:
            rows.add_row(moment(row["at"]), row["job_id"], row["user"], row["kind"], str(row["credits"]),
                         coloured(row["status"]), row["paid_by"])  # fmt: skip
    else:
        rows = table(title, "day", "user", "kind", "messages", "credits", numbers=("messages", "credits"))
        for row in answer["rows"]:
            rows.add_row(row["day"], row["user"], row["kind"], str(row["messages"]), str(row["credits"]))
    console.print(rows)
    _more(console, answer)


def orders(console: Console, answer: Json) -> None:
    """Orders."""
    _reminder(console, answer)
    columns = ("at", "order", "buyer", "credited to", "email", "sms", "minor units", "currency")
    rows = table(f"Orders of {answer['owner']}", *columns, numbers=("email", "sms", "minor units"))
    for row in answer["rows"]:
        rows.add_row(moment(row["at"]), row["order_id"], row["buyer"], row["owner"], str(row["credits"]["email"]),
                     str(row["credits"]["sms"]), str(row["amount"]), row["currency"])  # fmt: skip
    console.print(rows)
    _more(console, answer)


def billing(console: Console, answer: Json) -> None:
    """Billing information."""
    if not answer["billing"]:
        console.print(f"No billing information is saved for {answer['viewer']}.")
        return
    rows = table(f"Billing information of {answer['viewer']}", "field", "text")
    for name, text in answer["billing"].items():
        rows.add_row(name, Text(text))
    console.print(rows)


def users(console: Console, answer: Json) -> None:
    """Users."""
    rows = table("Users", "user", "name", "email", "role", "credits of")
    for row in answer["rows"]:
        owner = row["owner"] if row["sharing"] else "their own"
        rows.add_row(row["user_id"], Text(row["name"]), Text(row["email"]), row["role"], owner)
    console.print(rows)
    _more(console, answer)


def status(console: Console, answer: Json) -> None:
    """How workers, queues and jobs stand."""
    console.print("Workers:", ", ".join(answer["workers"]) or "none answers")
    queues = table("Queues", "queue", "jobs waiting", numbers=("jobs waiting",))
    for queue, length in answer["queues"].items():
        queues.add_row(queue, "broker does not answer" if length is None else str(length))
    console.print(queues)
    jobs = table("Send jobs", "kind", "state", "jobs", numbers=("jobs",))
    for kind, states in sorted(answer["jobs"].items()):
        for state, count in sorted(states.items()):
            jobs.add_row(kind, coloured(state), str(count))
    console.print(jobs)
    console.print(f"Refusals that took no key: {answer['refusals']}")


def audit(console: Console, answer: Json) -> None:
    """The findings of an audit."""
    if not answer["findings"]:
        console.print("Every invariant of the money holds.", style="green")
        return
    rows = table("Invariants that do not hold", "invariant", "where", "difference")
    for finding in answer["findings"]:
        rows.add_row(finding["invariant"], finding["subject"], finding["difference"])
    console.print(rows)
