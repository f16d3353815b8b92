"""The arithmetic of the benchmark, and the document that shows its results."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import figures

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results.json"


def side(*rates: float, failed: str | None = None, title: str = "a side") -> dict[str, Any]:
    """Give the measurements of one side: a rate for each round."""
    rounds = [{"round": number, "rate": rate, "foreign_cores": 0.1 * number} for number, rate in enumerate(rates, 1)]
    return {"title": title, "rounds": rounds, "failed": failed}


def results(**sides: dict[str, Any]) -> dict[str, Any]:
    """Give a whole run as it is stored."""
    return {
        "at": "2026-11-23T12:00:00+00:00",
        "commit": "0123456789",
        "how": {"rounds": 3, "scale": 1.0, "settings": "", "history": 0, "interrupted": False},
        "machine": {"cpus": 2, "cpu": "a CPU", "memory_gb": 8, "system": "Linux 6"},
        "versions": {"Python": "3.11.7"},
        "targets": figures.judged([figures.Target("ours", "theirs", "rate", 3.0)], sides),
        "sides": sides,
    }


@pytest.mark.parametrize(
    ("values", "part", "expected"),
    [
        ([5.0], 0.99, 5.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(100, 0, -1)], 0.5, 50.0),
        ([float(n) for n in range(1, 201)], 0.99, 198.0),
    ],
)
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(
    values: list[float], part: float, expected: float
) -> None:
    assert expected == figures.percentile(values, part)


def test_a_ratio_compares_medians_and_its_span_single_rounds() -> None:
    sides = {"ours": side(300, 900, 600), "theirs": side(100, 200, 300)}

    assert figures.compared(figures.Target("ours", "theirs", "rate", 3.0), sides) == (3.0, 2.0, 4.5)


def test_only_rounds_of_both_sides_are_compared() -> None:
    sides = {"ours": side(300, 900), "theirs": side(100)}

    assert figures.compared(figures.Target("ours", "theirs", "rate", 3.0), sides) == (6.0, 3.0, 3.0)


@pytest.mark.parametrize("sides", [{"ours": side(1)}, {"ours": side(1), "theirs": side(failed="it is not here")}, {}])
def test_a_ratio_that_lacks_a_side_is_left_out(sides: dict[str, Any]) -> None:
    assert figures.judged([figures.Target("ours", "theirs", "rate", 3.0)], sides) == {}


@pytest.mark.parametrize(("p99", "met"), [(49.0, True), (50.0, True), (51.0, False)])
def test_a_target_can_be_an_upper_limit(p99: float, met: bool) -> None:
    target = figures.Target("idle", None, "p99_ms", 50.0, at_most=True)
    sides = {"idle": {"title": "", "failed": None, "rounds": [{"round": 1, "p99_ms": p99}]}}

    assert met == figures.judged([target], sides)["idle, p99 ms"]["met"]


def test_the_tables_show_targets_rates_and_what_failed() -> None:
    run = results(ours=side(3000, 3300), theirs=side(1000, 1000), other=side(failed="install it: apt-get"))

    tables = dict(figures.tables(run))

    assert tables["Wanted and measured"][1:] == [("ours ÷ theirs", "3.15", "3 to 3.3", "≥ 3", "yes")]
    assert [row[1:3] for row in tables["How many"][1:]] == [("3,150", "3,000 to 3,300"), ("1,000", "1,000 to 1,000")]
    assert tables["Not measured"][1:] == [("a side", "install it: apt-get")]


def test_the_text_says_how_the_figures_were_measured() -> None:
    text = figures.markdown(results(ours=side(3, 3, 3), theirs=side(1, 1, 1)))

    assert "3 rounds on 2026-11-23, commit `0123456789`, 2 cores (a CPU)" in text
    assert "more than 0.25 of a core during 2 of 6 measurements" in text
    assert "| ours ÷ theirs | 3 | 3 to 3 | ≥ 3 | yes |" in text


def test_the_text_goes_between_the_markers() -> None:
    text = f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n"

    assert f"before\n{figures.BEGIN}\n\nnew\n\n{figures.END}\nafter\n" == figures.put_between(text, "new")


@pytest.mark.parametrize(
    "text", ["", figures.BEGIN, f"{figures.END}{figures.BEGIN}", f"{figures.BEGIN * 2}{figures.END}"]
)
def test_a_document_without_its_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="needs a line"):
        figures.put_between(text, "new")


def test_the_document_shows_the_stored_run() -> None:
    """The text between its markers is made from bench/results.json; without that file there are no figures."""
    text = DOCUMENT.read_text()
    shown = re.search(f"{figures.BEGIN}(.*){figures.END}", text, re.DOTALL)

    assert shown
    if RESULTS.exists():
        assert figures.put_between(text, figures.markdown(json.loads(RESULTS.read_text()))) == text
    else:
        assert shown[1].strip().startswith("Nothing yet")
