"""Credit usage: what was charged in a period, by day or by member, as bars and as the same numbers."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import date, timedelta
from itertools import islice

from models.messages.base import Json
from models.messages.fields import KINDS
from worker.console.charts import stacked_bars
from worker.console.screen import Asked, Screen

DEFAULT_DAYS = 30
DAYS_AS_BARS_MAX = 62
"""Days of a period of which each is a bar; a longer one is shown by month."""
PAGES_MAX = 50
"""Pages of rows that a chart is made of."""


def _message(asked: Asked) -> Json:
    """Return the message: of the last days, if the address names no period."""
    if asked.given.get("since") or asked.given.get("until"):
        return asked.view()
    return asked.view(since=str(asked.today - timedelta(DEFAULT_DAYS - 1)))


def _details(asked: Asked, _answer: Json) -> Json:
    message = _message(asked)
    rows, is_whole = _all_rows(asked, message)
    group = "member" if asked.given.get("group") == "member" else "day"
    sums = _by_member(rows) if group == "member" else _by_time(rows, message, asked.today)
    return {
        "group": group,
        "sums": sums,
        "chart": stacked_bars([(label, {kind: counts[kind] for kind in KINDS}) for label, counts in sums]),
        "is_whole": is_whole,
        "since": message.get("since", ""),
        "until": message.get("until", ""),
        "periods": _periods(asked),
    }


def _all_rows(asked: Asked, message: Json) -> tuple[list[Json], bool]:
    """Return the rows of all pages, and whether these are all there are."""
    message = {name: value for name, value in message.items() if name not in ("page", "next")}
    pages = list(islice(asked.pages("views.usage", message), PAGES_MAX))
    return [row for page in pages for row in page.get("rows") or []], not pages[-1].get("next")


Sums = list[tuple[str, dict[str, int]]]


def _by_member(rows: Sequence[Json]) -> Sums:
    """Return the credits of each member by kind, those who spent most first."""
    sums = _sums(rows, "user")
    return sorted(sums.items(), key=lambda item: (-sum(item[1].values()), item[0]))


def _by_time(rows: Sequence[Json], message: Json, today: date) -> Sums:
    """Return the credits of each day or month by kind, also of those on which nothing was sent."""
    sums = _sums(rows, "day")
    if not sums:
        return []
    first = _day_of(message.get("since")) or date.fromisoformat(min(sums))
    last = max(date.fromisoformat(max(sums)), min(today, (_day_of(message.get("until")) or today) - timedelta(1)))
    days = [first + timedelta(number) for number in range((last - first).days + 1)]
    label = "%-d %b" if len(days) <= DAYS_AS_BARS_MAX else "%b %Y"
    by_time: Sums = []
    for each in days:
        counts = sums.get(str(each), dict.fromkeys(KINDS, 0))
        if by_time and by_time[-1][0] == f"{each:{label}}":
            by_time[-1] = (by_time[-1][0], {kind: by_time[-1][1][kind] + counts[kind] for kind in KINDS})
        else:
            by_time.append((f"{each:{label}}", counts))
    return by_time


def _sums(rows: Sequence[Json], name: str) -> dict[str, dict[str, int]]:
    sums: defaultdict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(KINDS, 0))
    for row in rows:
        sums[row[name]][row["kind"]] += row["credits"]
    return sums


def _day_of(instant: str | None) -> date | None:
    return date.fromisoformat(instant[:10]) if instant else None


def _periods(asked: Asked) -> list[tuple[str, str, bool]]:
    """Return the periods to choose from: the name of a sentence, the address, and whether it is the one shown."""
    this_month = asked.today.replace(day=1)
    last_month = (this_month - timedelta(1)).replace(day=1)
    spans = {
        "last_30_days": (None, None),
        "this_month": (str(this_month), None),
        "last_month": (str(last_month), str(this_month)),
        "this_year": (str(asked.today.replace(month=1, day=1)), None),
    }
    shown = (asked.given.get("since") or None, asked.given.get("until") or None)
    return [
        (name, asked.link(since=since, until=until, page=None, next=None), shown == (since, until))
        for name, (since, until) in spans.items()
    ]


SCREEN = Screen(name="usage", path="/usage", task="views.usage", message=_message, details=_details)
