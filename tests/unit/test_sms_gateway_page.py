"""The examples of docs/sms-gateways.md do what they say."""

import re
from pathlib import Path

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from worker.carrier_urls import parse_carrier_url
from worker.carriers.http_client import HttpAnswer
from worker.carriers.sms_gateway import SmsGateway

PAGE = (Path(__file__).parents[2] / "docs/sms-gateways.md").read_text()
BLOCKS = re.findall(r"<!-- rules -->\n```\n(\S+)\n\n(.*?)\n```", PAGE, re.DOTALL)
EXAMPLES = [(url, line) for url, lines in BLOCKS for line in lines.splitlines()]


def test_every_kind_of_gateway_has_an_example() -> None:
    assert len(BLOCKS) == PAGE.count("<!-- rules -->") == 4


@pytest.mark.parametrize(("url", "line"), EXAMPLES)
def test_an_example_is_true(url: str, line: str) -> None:
    """A status and what stands inside give an outcome, and the gateway's id."""
    [(status, content, outcome, reference)] = re.findall(r"^(\d+) (.*?) +-> (\w+) ?(\S*)$", line)
    gateway = SmsGateway(parse_carrier_url(url), timeout_s=20)
    receipt = gateway._receipt(HttpAnswer(int(status), CIMultiDictProxy(CIMultiDict()), content.encode()))

    assert (receipt.outcome, receipt.reference or "") == (outcome, reference)
