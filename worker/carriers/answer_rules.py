"""Rules for what an HTTP gateway says inside its answer. They are options of its URL.

Without a rule the HTTP status decides. A rule is a path in the JSON of the answer, and the values that it holds for:

    taken=messages.*.status:0&later=messages.*.status:1|10&fault=messages.*.status:4|8|9&id=messages.0.message-id

A path is names and the places of elements (from 0), with dots between them; `*` is every element, and a rule holds only
if it holds for each. A value is compared as text: `0` is the number and the string. A path without values holds if
there is something: neither null, nor false, nor empty.

| rule | holds for | the message |
|---|---|---|
| `taken` | 2xx | was taken. If there is this rule, a 2xx for which no rule holds leaves us unsure. |
| `duplicate` | any status | was taken before: the answer to a repeated key. |
| `fault` | any status | was not taken, because of our account, login or credits. |
| `later` | any status | was not taken, and may be later. |
| `never` | any status | will not be taken. |

The first rule that holds counts, in this order: what may have been taken is never refunded.
`id` is the path of the gateway's own id of the message, `id` if it is left out.
"""

import enum
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from worker.carrier_urls import CarrierUrlError

_PATH = re.compile(r"[^.:|\s]{1,64}(\.[^.:|\s]{1,64}){0,9}")
_EVERY: Final = "*"
_NOTHING: Final = object()
_EMPTY: Final[tuple[object, ...]] = (_NOTHING, None, False, "", [], {})


class Said(enum.StrEnum):
    """What a rule says of a message, in the order in which they are tried."""

    TAKEN = "taken"
    DUPLICATE = "duplicate"
    FAULT = "fault"
    LATER = "later"
    NEVER = "never"


OPTIONS: Final = (*Said, "id")
"""The options of a URL that are rules."""


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """A path, and the values for which the rule holds. Without values, it holds for whatever is there."""

    path: tuple[str, ...]
    values: frozenset[str]

    @classmethod
    def parse(cls, name: str, text: str) -> Self:
        """Read `PATH` or `PATH:VALUE|VALUE…`.

        Raises
        ------
        CarrierUrlError
            If it is written otherwise.

        """
        path, colon, values = text.partition(":")
        if not _PATH.fullmatch(path) or (colon and not all(values.split("|"))):
            msg = f"The address of a carrier has {name}={text[:40]}; it is written PATH or PATH:VALUE|VALUE…"
            raise CarrierUrlError(msg)
        return cls(tuple(path.split(".")), frozenset(values.split("|") if colon else ()))

    def holds_for(self, content: Any) -> bool:  # noqa: ANN401  JSON
        """Whether it holds for every value at its path, of which there is one at least."""
        found = list(_find(content, self.path))
        if not self.values:
            return bool(found) and not any(value in _EMPTY for value in found)
        return bool(found) and all(value is not _NOTHING and _as_text(value) in self.values for value in found)


class AnswerRules:
    """The rules of one gateway."""

    def __init__(self, options: Mapping[str, str]) -> None:
        """Read the rules among the options of a URL.

        Raises
        ------
        CarrierUrlError
            If one cannot be read.

        """
        self._rules = {said: AnswerRule.parse(said, options[said]) for said in Said if said in options}
        self._id = AnswerRule.parse("id", options.get("id", "id")).path
        self.decide = bool(self._rules.keys() - {Said.DUPLICATE})
        """Whether there is a rule by which a 2xx may mean something else than that the message was taken."""
        self.needs_taken = Said.TAKEN in self._rules
        """Whether a message is taken only if a rule says so."""

    def first(self, content: Any, *, is_success: bool) -> Said | None:  # noqa: ANN401  JSON
        """Return what the first rule that holds says. `is_success`: the status is 2xx."""
        for said, rule in self._rules.items():
            if (is_success or said is not Said.TAKEN) and rule.holds_for(content):
                return said
        return None

    def reference(self, content: Any) -> str | None:  # noqa: ANN401  JSON
        """Return the gateway's own id of the message, if there is one that is a string or a whole number."""
        value = next(_find(content, self._id), None)
        if isinstance(value, bool) or not isinstance(value, str | int):
            return None
        return str(value)


def _find(content: Any, path: tuple[str, ...]) -> Iterator[Any]:  # noqa: ANN401  JSON
    """Yield what is at a path; `_NOTHING` where it leads nowhere."""
    if not path:
        yield content
        return
    step, rest = path[0], path[1:]
    if isinstance(content, list) and step == _EVERY:
        for each in content:
            yield from _find(each, rest)
    elif isinstance(content, dict) and step in content:
        yield from _find(content[step], rest)
    elif isinstance(content, list) and step.isascii() and step.isdigit() and int(step) < len(content):
        yield from _find(content[int(step)], rest)
    else:
        yield _NOTHING


def _as_text(value: Any) -> str:  # noqa: ANN401  JSON
    return value if isinstance(value, str) else json.dumps(value)
