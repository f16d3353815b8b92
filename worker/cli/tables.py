"""How answers are printed for people: tables and short lines."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models.messages.base import Json

STYLES = {
    "sent": "green",
    "done": "green",
    "works": "green",
    "rests": "red",
    "tried": "yellow",
    "refused": "yellow",
    "failed": "red",
    "unknown": "magenta",
    "fault": "red",
    "quarantined": "magenta",
}


def table(title: str, *columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """Return a table in our style; the columns in `numbers` are aligned right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return made


def coloured(status: str) -> Text:
    """Return a status in its colour."""
    return Text(status, style=STYLES.get(status, "cyan"))


def moment(instant: str | None) -> str:
    """Return an ISO 8601 time to the second. All times are UTC."""
    return (instant or "")[: len("2026-11-23T10:00:00")].replace("T", " ")


def _reminder(console: Console, answer: Json) -> None:
    if answer.get("reminder"):
        console.print(Text(answer["reminder"], style="italic cyan"))


def _more(console: Console, answer: Json) -> None:
    if answer.get("more"):
        console.print(f"More: --next {answer['next']}", soft_wrap=True)


def message(console: Console, answer: Json) -> None:
    """Print the answer to one send job."""
    console.print(answer["job_id"], coloured(answer["status"]), answer.get("reason") or "")
    if answer.get("detail"):
        console.print(Text(answer["detail"]))
    if answer.get("paid_by"):
        attempts = _count(answer["attempts"], "attempt")
        console.print(f"{_count(answer['credits'], 'credit')} paid by {answer['paid_by']}, {attempts}")
    for state, count in (answer.get("messages") or {}).items():
        console.print(f"  {count} {state}")
    for address, words in (answer.get("recipients_refused") or {}).items():
        console.print(Text(f"  refused {address}: {words}"))


def story(console: Console, answer: Json) -> None:
    """Print what happened to a job, line by line."""
    console.print(answer["job_id"], coloured(answer["status"]), answer["reason"] or "")
    events = table("", "when", "what", "in words")
    for event in answer["story"]:
        events.add_row(moment(event["at"]) or "now", event["kind"].replace("_", " "), Text(event["text"]))
    console.print(events)


def applied(console: Console, answer: Json) -> None:
    """Print what the entries of a file have changed, or would change."""
    for row in answer["rows"]:
        console.print(Text(f"line {row['line']}  {row['task']}  {row['name']}: {row['change']}"), soft_wrap=True)
        for name, (old, new) in row["fields"].items():
            console.print(Text(f"    {name}: {'' if old is None else f'{old} → '}{new}"), soft_wrap=True)
        if row["detail"]:
            console.print(Text(f"    {row['reason']}: {row['detail']}"), soft_wrap=True)
    counts = f"{answer['new']} new, {answer['changed']} changed, {answer['unchanged']} unchanged"
    after = f", {answer['not_reached']} not reached" if answer["not_reached"] else ""
    console.print(f"{counts}{after}.{' Nothing was written.' if answer['dry_run'] else ''}")


def saved(console: Console, answer: Json) -> None:
    """Print that something was saved."""
    name = answer.get("user_id") or answer.get("role") or answer.get("plan")
    console.print(Text(f"{name} is saved."))


def purchase(console: Console, answer: Json) -> None:
    """Print a purchase."""
    bought = _counts(answer["credits"])
    console.print(f"{answer['order_id']}: {bought} for {answer['owner']}, bought by {answer['buyer']}.")


def reversal(console: Console, answer: Json) -> None:
    """Print a reversal."""
    taken = f"{_counts(answer['credits'])} of order {answer['order_id']}"
    console.print(f"{answer['reversal_id']}: {taken} taken back from {answer['owner']}.")
    if any(answer["debt"].values()):
        console.print(f"Spent already: {_counts(answer['debt'])}. The next purchases pay for that first.")


def adjustment(console: Console, answer: Json) -> None:
    """Print an adjustment."""
    console.print(f"{answer['adjustment_id']}: {_counts(answer['credits'], sign='+')} for {answer['owner']}.")


def _counts(credits_: Json, sign: str = "") -> str:
    """Return credits of both kinds in words, without a kind of which there are none."""
    counts = ("email", credits_["email"]), ("SMS", credits_["sms"])
    words = [f"{count:{sign}} {kind}" for kind, count in counts if count]
    last = [count for _, count in counts if count][-1:]
    return f"{' and '.join(words)} credit{'' if last in ([1], [-1]) else 's'}" if words else "no credits"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if abs(count) == 1 else f"{count} {noun}s"


def change(console: Console, answer: Json) -> None:
    """Print a change of credit owner."""
    console.print(f"{answer['change_id']}: {answer['user']} now spends the credits of {answer['owner']}.")


def erasure(console: Console, answer: Json) -> None:
    """Print the erasure of a user."""
    console.print(f"{answer['erasure_id']}: {answer['user']} is erased.")


def cancelled(console: Console, answer: Json) -> None:
    """Print what a cancellation has stopped."""
    stopped, late = answer["cancelled"], answer["too_late"]
    console.print(
        f"{answer['cancel_id']}: {_count(stopped, 'message')} cancelled, {_count(answer['credits'], 'credit')} given "
        f"back; too late for {late}."
    )


def purged(console: Console, answer: Json) -> None:
    """Print what was taken off a queue."""
    console.print(f"{answer['queue']}: {_count(answer['cancelled'], 'message')} refused as cancelled.")
    if answer["left"]:
        console.print(f"{answer['left']} could not be read, and are left for a worker, which quarantines them.")


def overview(console: Console, answer: Json) -> None:
    """Print remaining credits and plans."""
    _reminder(console, answer)
    credits_left = table(f"Credits of {answer['owner']}", "kind", "remaining", numbers=("remaining",))
    for kind, remaining in answer["remaining"].items():
        credits_left.add_row(kind, str(remaining))
    console.print(credits_left)
    if any(answer["debt"].values()):
        owed = f"Owed: {_counts(answer['debt'])} of purchases that were paid back. The next purchases pay them first."
        console.print(Text(owed, style="yellow"))
    if answer["plans"]:
        plans = table("Plans", "plan", "name", "orders", "last bought", numbers=("orders",))
        for plan in answer["plans"]:
            plans.add_row(plan["plan"], plan["name"], str(plan["orders"]), moment(plan["last_at"]))
        console.print(plans)


def usage(console: Console, answer: Json) -> None:
    """Print credits spent."""
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
    """Print orders."""
    _reminder(console, answer)
    columns = ["at", "order", "buyer", "credited to", "email", "sms", "minor units", "currency"]
    if any(row["reversals"] for row in answer["rows"]):
        columns.append("reversed")
    rows = table(f"Orders of {answer['owner']}", *columns, numbers=("email", "sms", "minor units"))
    for row in answer["rows"]:
        cells = (moment(row["at"]), row["order_id"], row["buyer"], row["owner"], str(row["credits"]["email"]),
                 str(row["credits"]["sms"]), str(row["amount"]), row["currency"], _reversed(row))  # fmt: skip
        rows.add_row(*cells[: len(columns)])
    console.print(rows)
    _more(console, answer)


def _reversed(order: Json) -> str:
    """Return what was reversed of an order, a line for each time."""
    return "\n".join(f"{made['kind']}: {_counts(made['credits'])}" for made in order["reversals"])


def statement(console: Console, answer: Json) -> None:
    """Print the entries of both accounts."""
    _reminder(console, answer)
    for account in answer["accounts"]:
        title = f"{account['kind']} of {account['owner']}: {_count(account['balance'], 'credit')}"
        title += f", {account['debt']} owed" if account["debt"] else ""
        rows = table(title, "entry", "at", "cause", "credits", "balance", "debt",
                     numbers=("credits", "balance", "debt"))  # fmt: skip
        for row in account["entries"]:
            name, amount = f"{account['kind']}/{row['seq']}", _signed(row["amount"])
            left = str(row["balance_after"]), str(row["debt_after"] or "")
            rows.add_row(name, moment(row["at"]), Text(_cause(row)), amount, *left)
        console.print(rows)
    _more(console, answer)


def _signed(amount: int) -> str:
    return f"{amount:+}" if amount else "0"


def _cause(entry: Json) -> str:
    """Return why an entry was made. The ids of batches say nothing to people."""
    if entry["cause_kind"] in ("purchase", "reversal", "adjustment"):
        return f"{entry['cause_kind']} {entry['cause_id']}"
    return str(entry["cause_kind"])


def entry(console: Console, answer: Json) -> None:
    """Print one entry, and what is behind it."""
    _reminder(console, answer)
    made = answer["entry"]
    name = f"{made['kind']}/{made['seq']} of {made['owner']}"
    amount = f"{_signed(made['amount'])} credit{'' if abs(made['amount']) == 1 else 's'}"
    left = f"{made['balance_after']}" + (f" and a debt of {made['debt_after']}" if made["debt_after"] else "")
    console.print(f"{name}, {moment(made['at'])}: {_cause(made)}, {amount}, which left {left}.")
    if answer["messages"]:
        rows = table("Messages", "job", "user", "credits", "status", "at", numbers=("credits",))
        for row in answer["messages"]:
            rows.add_row(row["job_id"], row["user"], str(row["credits"]), coloured(row["status"]), moment(row["at"]))
        console.print(rows)
    if answer["reversal"]:
        _correction(console, f"{answer['reversal']['kind'].capitalize()} of order {answer['reversal']['order_id']}",
                    answer["reversal"])  # fmt: skip
    if answer["adjustment"]:
        _correction(console, f"Adjusted by {answer['adjustment']['actor']}", answer["adjustment"])
    if answer["order"]:
        orders(console, {"owner": made["owner"], "rows": [answer["order"]]})


def _correction(console: Console, who: str, made: Json) -> None:
    console.print(Text(f"{who}, {_counts(made['credits'])}: {made['reason']}"))


def billing(console: Console, answer: Json) -> None:
    """Print billing information."""
    if not answer["billing"]:
        console.print(f"No billing information is saved for {answer['viewer']}.")
        return
    rows = table(f"Billing information of {answer['viewer']}", "field", "text")
    for name, text in answer["billing"].items():
        rows.add_row(name, Text(text))
    console.print(rows)


def users(console: Console, answer: Json) -> None:
    """Print users."""
    rows = table("Users", "user", "name", "email", "role", "credits of")
    for row in answer["rows"]:
        owner = row["owner"] if row["sharing"] else "their own"
        rows.add_row(row["user_id"], Text(row["name"]), Text(row["email"]), row["role"], owner)
    console.print(rows)
    _more(console, answer)


def changes(console: Console, answer: Json) -> None:
    """Print who changed what."""
    rows = table("Changes", "at", "by", "what", "of", "before", "now")
    for row in answer["rows"]:
        rows.add_row(moment(row["at"]), row["actor"] or "-", row["kind"], row["subject"], _fields(row["old"]),
                     _fields(row["new"]))  # fmt: skip
    console.print(rows)
    _more(console, answer)


def _fields(values: Json | None) -> Text:
    """Return what a change has set, field by field."""
    if values is None:
        return Text("-")
    shown = {name: ", ".join(value) if isinstance(value, list) else value for name, value in values.items()}
    return Text("\n".join(f"{name}: {value}" for name, value in shown.items() if value is not None))


def status(console: Console, answer: Json) -> None:
    """Print how workers, queues and jobs stand."""
    carriers(console, {"rows": answer["carriers"]})
    console.print("Workers:", ", ".join(answer["workers"]) or "none answers")
    queues = table("Queues", "queue", "jobs waiting", numbers=("jobs waiting",))
    for queue, length in answer["queues"].items():
        queues.add_row(queue, "broker does not answer" if length is None else str(length))
    console.print(queues)
    jobs = table("Send jobs: open, or ended in the last 24 hours", "kind", "state", "jobs", numbers=("jobs",))
    for kind, states in sorted(answer["jobs"].items()):
        for state, count in sorted(states.items()):
            jobs.add_row(kind, coloured(state), str(count))
    console.print(jobs)
    if answer["postponed"]:
        console.print(f"Postponed, because they have an eta: {answer['postponed']}")
    console.print(f"Refusals that took no key, in the last 24 hours: {answer['refusals']}")
    if answer["dead"] or answer["quarantined"]:
        dead_jobs = _count(answer["dead"], "job")
        console.print(f"Dead: {dead_jobs}, and {answer['quarantined'] or 0} in quarantine: `postage dead list`.")
    if any(states.get("unknown") for states in answer["jobs"].values()):
        console.print("Some messages are unknown: `postage unknown list`.")


def carriers(console: Console, answer: Json) -> None:
    """Print whether each carrier works, and if not, why."""
    rows = table("Carriers", "kind", "name", "address", "state", "why", "since", "until", "times", numbers=("times",))
    for row in answer["rows"]:
        why = f"our fault: {row['why']}" if row["fault"] == "ours" else row["why"] or ""
        address = row["address"] or "not set up here"
        if address.startswith("null:"):
            why = "It accepts everything and sends nothing."
        rows.add_row(row["kind"], row["name"], address, coloured(row["state"]), Text(why), moment(row["since"]),
                     moment(row["until"]), str(row["times"] or ""))  # fmt: skip
    console.print(rows)
    if any(row["state"] == "rests" for row in answer["rows"]):
        console.print("Once it is mended, `postage carriers wake NAME` lets the next job try it.")


def woken(console: Console, answer: Json) -> None:
    """Print that a carrier is tried, or forgotten."""
    if not answer["kinds"]:
        console.print(Text(f"{answer['name']}: {answer['detail']}"), style="red")
    elif answer["is_set_up"]:
        console.print(f"{answer['name']} ({', '.join(answer['kinds'])}): the next job tries it.")
    else:
        console.print(f"{answer['name']} ({', '.join(answer['kinds'])}) is not set up here, and is forgotten.")


def unknown(console: Console, answer: Json) -> None:
    """Print messages whose outcome is unknown."""
    if not answer["rows"]:
        console.print("Nothing is unknown.", style="green")
        return
    rows = table(
        "Unknown",
        "organization",
        "job",
        "kind",
        "sender",
        "credits",
        "paid by",
        "handed over",
        "why",
        numbers=("credits",),
    )
    for row in answer["rows"]:
        rows.add_row(row["organization"], row["job_id"], row["kind"], row["sender"], str(row["credits"]),
                     row["paid_by"], moment(row["handed_at"]), Text(row["detail"] or ""))  # fmt: skip
    console.print(rows)
    _more(console, answer)


def decided(console: Console, answer: Json) -> None:
    """Print what a person has decided about unknown messages."""
    for job in answer["settled"]:
        if answer["decision"] == "resend":
            console.print(f"{job['job_id']}: will be sent again.")
        else:
            back = job["cost"] - job["credits"]
            console.print(f"{job['job_id']}: {back} of {job['cost']} credits went back to {job['paid_by']}.")
    for job in answer["not_unknown"]:
        console.print(Text(f"{job['job_id']}: {job['detail']} ({job['status']})"), style="red")
    for job in answer["ambiguous"]:
        console.print(Text(f"{job['job_id']}: {job['detail']}"), style="red")
    if not answer["settled"] and answer["status"] == "done":
        console.print("Nothing is unknown.", style="green")


def dead(console: Console, answer: Json) -> None:
    """Print dead jobs, without their contents."""
    if answer.get("detail"):
        console.print(Text(answer["detail"]), style="yellow")
    if not answer["rows"]:
        console.print("No dead jobs.", style="green")
        return
    rows = table("Dead jobs", "id", "kind", "task", "job", "person", "reason", "at", "replayed as")
    for row in answer["rows"]:
        if row["kind"] == "quarantined":
            job, reason = row["queue"] or "", f"{row['bytes']} bytes"
        else:
            job, reason = row["key"], row["reason"] or ""
        rows.add_row(row["id"], coloured(row["kind"]), Text(row["task"] or "-"), Text(job), row.get("person") or "",
                     reason, moment(row.get("at")), Text(row.get("replayed_as") or ""))  # fmt: skip
    console.print(rows)
    _more(console, answer)


def dead_job(console: Console, answer: Json) -> None:
    """Print one dead job with its contents."""
    for name, part in answer.items():
        if name not in ("status", "job", "raw") and part is not None:
            console.print(Text(f"{name}: {part}"))
    if "raw" in answer:
        console.print(Text(escape_controls(answer["raw"])))
    else:
        console.print_json(data=answer["job"], ensure_ascii=True)


def escape_controls(text: str) -> str:
    """Return `text` with everything escaped that a terminal would obey, except line breaks."""
    return "".join(
        character if character.isprintable() or character == "\n" else repr(character)[1:-1] for character in text
    )


def replayed(console: Console, answer: Json) -> None:
    """Print the results of a replay."""
    for row in answer["rows"]:
        if row["replayed_as"] is None:
            console.print(Text(f"{row['id']}: not replayed. {row['detail']}"), style="red")
        else:
            console.print(Text(f"{row['id']}: {row['task'] or 'the item'} is enqueued again, as {row['replayed_as']}."))
    if not answer["rows"]:
        console.print("Nothing to replay.", style="green")


def audit(console: Console, answer: Json) -> None:
    """Print what an audit has examined and found."""
    looked_at = ", ".join(f"{count} {table}" for table, count in answer["examined"].items())
    since = "the whole history" if answer["full"] else f"since {moment(answer['since']) or 'the beginning'}"
    console.print(f"Looked at {looked_at}: {since}.")
    if answer["again"]:
        looked_again_at = ", ".join(f"{count} {table}" for table, count in answer["again"].items())
        console.print(f"Looked again at {looked_again_at}.")
    if not answer["findings"]:
        console.print("Every invariant of the money holds.", style="green")
        return
    rows = table("Invariants that do not hold", "invariant", "where", "difference")
    for finding in answer["findings"]:
        rows.add_row(finding["invariant"], Text(finding["subject"]), Text(finding["difference"]))
    console.print(rows)
    console.print("`postage findings list` shows since when; `postage findings acknowledge` says why they may stand.")


def findings(console: Console, answer: Json) -> None:
    """Print findings of audits."""
    for finding_id in answer.get("not_alarming", ()):
        console.print(f"{finding_id}: it does not alarm, so there is nothing to acknowledge.", style="red")
    if not answer["rows"]:
        console.print("No findings.", style="green")
        return
    rows = table("Findings", "id", "invariant", "where", "difference", "since", "state")
    for row in answer["rows"]:
        rows.add_row(str(row["id"]), row["invariant"], Text(row["subject"]), Text(row["difference"]),
                     moment(row["first_at"]), Text(_finding_state(row)))  # fmt: skip
    console.print(rows)


def _finding_state(row: Json) -> str:
    if row["resolved_at"]:
        return f"resolved {moment(row['resolved_at'])}"
    if row["acknowledged_at"]:
        return f"acknowledged by {row['acknowledged_by']}: {row['note']}"
    return "alarms"


def verified(console: Console, answer: Json) -> None:
    """Print what is wrong with a statement."""
    console.print(f"{answer['entries']} entries of {answer['accounts']} accounts.")
    for sentence in answer["notes"]:
        console.print(Text(sentence), style="yellow")
    for sentence in answer["faults"]:
        console.print(Text(sentence), style="red")
    if not answer["faults"]:
        console.print("Hashes, numbers, sums and contents agree.", style="green")


def enqueued(console: Console, answer: Json) -> None:
    """Print how many jobs were enqueued."""
    are = "is on its queue" if answer["enqueued"] == 1 else "are on their queues"
    console.print(f"{_count(answer['enqueued'], 'job')} {are}. `postage status JOB_ID` shows how each stands.")


def settings(console: Console, answer: Json) -> None:
    """Print each setting, with those that the environment has set marked."""
    shown = table("Settings in force", "setting", "value", "set", "what for")
    for row in answer["rows"]:
        value = "" if row["value"] is None else str(row["value"])
        shown.add_row(row["name"], Text(value), "yes" if row["is_set"] else "", Text(row["description"]))
    console.print(shown)
