"""How answers become pages."""

from datetime import date, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from models.messages.currencies import minor_digits
from worker.console.sentences import say

HERE = Path(__file__).parent
STATIC = HERE / "static"


def make_environment() -> Environment:
    """Return the environment of all templates. Whatever a name contains, it is text on a page."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["say"] = say
    environment.filters.update(number=number, moment=moment, day=day, money=money)
    return environment


def number(count: int) -> str:
    """Return a count with its thousands apart."""
    return f"{count:,}"


def moment(instant: str) -> str:
    """Return an ISO 8601 time for people, to the minute. All times are UTC."""
    return f"{datetime.fromisoformat(instant):%-d %b %Y, %H:%M}"


def day(when: str | date) -> str:
    """Return a day for people."""
    return f"{date.fromisoformat(when) if isinstance(when, str) else when:%-d %b %Y}"


def money(amount: int, currency: str) -> str:
    """Return an amount in minor units with its decimals."""
    digits = minor_digits(currency)
    whole, rest = divmod(abs(amount), 10**digits)
    decimals = f".{rest:0{digits}}" if digits else ""
    return f"{'-' if amount < 0 else ''}{whole:,}{decimals} {currency}"
