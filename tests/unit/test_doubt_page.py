"""docs/doubt.md is true: its tables are those of models/sends/outcomes.py, and what they say of outcomes is done."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from models.sends import outcomes
from models.sends.carrier import Outcome, Receipt
from models.sends.charges import Charge, State
from models.sends.leases import HandedOver
from models.sends.outcomes import CRASH, RULES, Attempt, Doubt, Settlement, settlement_after_crash, settlement_for
from models.sends.retry_policy import RetryPolicy
from tests.fakes import NOON
from tests.unit.test_docs import names, table

PAGE = (Path(__file__).parents[2] / "docs/doubt.md").read_text()
WORDS = {State.SENT: "sent", State.FAILED: "failed", State.WAITING: "waits", State.UNKNOWN: "unknown"}
COLUMNS = ("accepted", "never", "anything else", "the same, and no try is left")
POLICY = RetryPolicy(attempts_max=3)
HOUR = timedelta(hours=1)


def charge(*, in_doubt: bool, attempts: int = 1) -> Charge:
    """Give a text message in an attempt; a carrier may have it since an hour, or nobody can."""
    return Charge(
        org_id=1,
        job_id="job-1",
        task="sms.send",
        kind="sms",
        sender="john",
        digest="",
        credits=1,
        state=State.SENDING,
        created_at=NOON - 2 * HOUR,
        payer="john",
        attempts=attempts,
        handover_started_at=NOON - HOUR if in_doubt else None,
        content={"text": "Hello"},
        carrier="texts" if in_doubt else None,
    )


def after(outcome: str, charged: Charge, window: timedelta) -> Settlement:
    """Give how an attempt ends whose carrier answered so, or whose worker crashed."""
    if outcome == CRASH:
        return settlement_after_crash(charged, None, key_window=window, policy=POLICY, now=NOON)
    attempt = Attempt(charge=charged, carrier="texts", key_window=window, receipt=Receipt(Outcome(outcome)))
    return settlement_for(attempt, policy=POLICY, now=NOON)


def cells() -> Iterator[tuple[Doubt, str, str]]:
    """Give each cell of the page's table: the doubt, the column, and the word in it."""
    for row in table(PAGE, "the message"):
        for column in COLUMNS:
            yield Doubt(row["the message"]), column, row[column]


def test_the_table_of_the_page_is_the_table_in_code() -> None:
    assert {row["the message"]: [row[column] for column in COLUMNS] for row in table(PAGE, "the message")} == {
        doubt.value: [WORDS[state] for state in rule] for doubt, rule in RULES.items()
    }


def test_the_table_beside_the_code_is_the_same() -> None:
    assert outcomes.__doc__
    assert table(outcomes.__doc__, "the message") == table(PAGE, "the message")


@pytest.mark.parametrize(("doubt", "column", "word"), list(cells()))
def test_what_the_table_says_is_done(doubt: Doubt, column: str, word: str) -> None:
    window = 2 * HOUR if doubt is Doubt.ASKABLE else timedelta(0)
    is_last = column == COLUMNS[-1]
    answers = {"accepted": ["accepted"], "never": ["never"], "anything else": ["not_now", "our_fault", CRASH]}
    for outcome in answers.get(column, ["not_now", CRASH]):
        charged = charge(in_doubt=doubt is not Doubt.NONE, attempts=3 if is_last else 1)
        settled = after(outcome, charged, window)
        assert WORDS[settled.state] == word, outcome
        assert (settled.refund > 0) == (word == "failed")


def test_every_outcome_is_explained() -> None:
    assert sorted(names(table(PAGE, "outcome"))) == sorted([*map(str, Outcome), CRASH])


@pytest.mark.parametrize("row", table(PAGE, "outcome"), ids=lambda row: row["outcome"])
def test_outcomes_make_and_end_doubts_as_the_page_says(row: dict[str, str]) -> None:
    """At a carrier without a window, a doubt shows at once: the message is unknown."""
    outcome = row["outcome"].strip("`")

    makes = after(outcome, charge(in_doubt=False), timedelta(0)).state is State.UNKNOWN
    ends = after(outcome, charge(in_doubt=True), timedelta(0)).state is not State.UNKNOWN

    assert makes == (row["does it make a doubt"] == "yes")
    assert ends == (row["does it end one"] == "yes")


def test_a_crash_makes_a_doubt_only_after_the_handover() -> None:
    handed_over = HandedOver("texts", NOON)

    settled = settlement_after_crash(
        charge(in_doubt=False), handed_over, key_window=timedelta(0), policy=POLICY, now=NOON
    )

    assert settled.state is State.UNKNOWN


def test_what_each_end_means_is_said() -> None:
    assert [row["it"].split()[-1].strip("`") for row in table(PAGE, "it")] == ["sent", "failed", "waits", "unknown"]
