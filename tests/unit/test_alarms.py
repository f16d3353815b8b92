"""The files of deploy/prometheus and deploy/grafana: that each alarm says what to do, and the dashboard is sound."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
GRAFANA = ROOT / "deploy/grafana"
ALARMS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "postage.rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
TRIED = (PROMETHEUS / "postage.rules.test.yml").read_text()
DASHBOARD = json.loads((GRAFANA / "dashboards/postage.json").read_text())
PANELS = DASHBOARD["panels"]
COLUMNS = 24
"""How many columns Grafana divides a dashboard into."""


@pytest.fixture(params=ALARMS, ids=lambda alarm: alarm["alert"])
def alarm(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


def test_an_alarm_says_what_is_wrong_and_what_to_do(alarm: dict[str, Any]) -> None:
    notes = alarm["annotations"]

    assert set(notes) == {"summary", "description", "runbook_url"}
    assert notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    assert alarm["labels"]["severity"] in ("critical", "warning", "info")


def test_the_cure_of_an_alarm_stands_where_it_points_to(alarm: dict[str, Any]) -> None:
    page, _, anchor = alarm["annotations"]["runbook_url"].partition("#")
    cures = re.findall(r"^### (\w+)\n\n(\S.*)", (ROOT / page).read_text(), re.MULTILINE)

    assert anchor == alarm["alert"].lower()
    assert alarm["alert"] in dict(cures)


def test_no_cure_is_left_of_an_alarm_that_is_gone() -> None:
    cures = re.findall(r"^### (Postage\w+)$", (ROOT / "docs/operating.md").read_text(), re.MULTILINE)

    assert cures == [alarm["alert"] for alarm in ALARMS]


def test_an_alarm_is_tried_silent_and_firing(alarm: dict[str, Any]) -> None:
    asked = f'ALERTS{{alertname="{alarm["alert"]}", alertstate="firing"'
    fires = [test for test in yaml.safe_load(TRIED)["tests"] if asked in json.dumps(test).replace('\\"', '"')]
    expected = [one["exp_samples"] for test in fires for one in test["promql_expr_test"]]

    assert [] in expected
    assert any(expected)


def test_series_are_taken_together_for_each_installation(alarm: dict[str, Any]) -> None:
    """Several installations may be in one Prometheus, and several workers say the same."""
    expression = alarm["expr"]

    assert expression.startswith(("absent(", "up{")) or re.findall(r"by \(job\b", expression)


# -- the dashboard ----------------------------------------------------------------------------------------------------


def test_panels_have_numbers_and_titles_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)


def test_panels_lie_beside_each_other() -> None:
    cells = [
        (x, y)
        for panel in PANELS
        for place in [panel["gridPos"]]
        for x, y in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < COLUMNS


def test_everything_is_asked_of_the_source_that_is_provisioned() -> None:
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    asking = [
        *(part for panel in PANELS if panel["type"] != "row" for part in (panel, *panel["targets"])),
        *DASHBOARD["templating"]["list"],
        *DASHBOARD["annotations"]["list"],
    ]

    assert [part for part in asking if part["datasource"] != {"type": source["type"], "uid": source["uid"]}] == []


def test_every_panel_says_what_it_shows_and_shows_one_installation() -> None:
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert all('job=~"$job"' in target["expr"] for target in panel["targets"]), panel["title"]
