"""What a screen is, and what it is asked."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import Connection

from models.messages.base import Json
from models.messages.billing import Right
from models.users.sessions import SignedIn
from worker.console.forms import Form


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request to a screen: who looks, what stands in its address, and how it can ask for more.

    `ask` returns the answer of a task that changes nothing. `enqueue` puts a task on its queue for the viewer, under
    the key of its message. `answer_of` returns the answer to what this viewer has enqueued under a key, once it is
    there. `today` is the day in UTC.
    """

    viewer: SignedIn
    given: Mapping[str, str]
    today: date
    ask: Callable[[str, Json], Json]
    read: Callable[[Callable[[Connection], Any]], Any]
    enqueue: Callable[[str, str, Json], None]
    answer_of: Callable[[str], Json | None]

    def view(self, **changed: object) -> Json:
        """Return the message of a view: the viewer, and what the address says of its fields."""
        message: Json = {"viewer": self.viewer.user.id}
        for name in ("of", "since", "until", "next"):
            if self.given.get(name):
                message[name] = self.given[name]
        if self.given.get("page"):
            page = self.given["page"]
            message["page"] = int(page) if page.isascii() and page.isdigit() and len(page) < 10 else page  # noqa: PLR2004  fits
        return {name: value for name, value in (message | changed).items() if value is not None}

    def pages(self, task: str, message: Json, first: Json | None = None) -> Iterator[Json]:
        """Yield the answer of a view, which may be known already, and those of the pages after it."""
        answer = first or self.ask(task, message)
        yield answer
        while answer.get("next"):
            answer = self.ask(task, message | {"next": answer["next"]})
            yield answer

    def link(self, **changed: str | None) -> str:
        """Return the query of an address like this one, with some parameters changed, or left out if they are None."""
        query = {**{name: self.given[name] for name in QUERY if self.given.get(name)}, **changed}
        return "?" + urlencode({name: value for name, value in query.items() if value is not None})


QUERY = ("of", "since", "until", "group", "entry", "job_id", "subject", "page", "next")
"""The parameters of an address that links to the same screen keep."""


def no_details(_asked: Asked, _answer: Json) -> Json:
    """Return nothing."""
    return {}


def rows_of(answer: Json) -> list[Json] | None:
    """Return the rows of an answer, or None if it has none."""
    return answer.get("rows")


def is_refusal(answer: Json) -> bool:
    """Whether an answer says that the view itself was refused."""
    return bool(answer["status"] == "refused")


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """A screen: its address, the view that it shows, and the rights without which nobody sees it.

    Its template and its sentences have its name. `message` returns the message of the view for a request; `answer`
    replaces both, where no task answers it. `details` returns what the template needs beside the answer. `rows` returns
    the rows of an answer as CSV has them, or None if there is nothing to download. `is_refused`
    tells a refused view from one of something that was refused. `change` does what a form asks for,
    and returns the address to go on with.
    """

    name: str
    path: str
    task: str = ""
    message: Callable[[Asked], Json] = Asked.view
    answer: Callable[[Asked], Json] | None = None
    details: Callable[[Asked, Json], Json] = no_details
    rows: Callable[[Json], list[Json] | None] = rows_of
    is_refused: Callable[[Json], bool] = is_refusal
    change: Callable[[Asked, Form], str] | None = None
    rights: tuple[Right, ...] = ()
    in_navigation: bool = True

    def read(self, asked: Asked) -> Json:
        """Return the answer that this screen shows."""
        return self.answer(asked) if self.answer else asked.ask(self.task, self.message(asked))
