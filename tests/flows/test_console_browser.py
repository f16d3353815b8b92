"""The console in a real browser, on everything that `postage up` starts: it can be used by everybody, on any screen.

SCREENSHOTS=folder keeps a picture of every screen there.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.deployment import Program, wait_until
from tests.servers import free_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here to look at the console with"),
    pytest.mark.xdist_group("console-browser"),
    pytest.mark.timeout(300),
]

ROOT = Path(__file__).parents[2]
STORY = ROOT / "examples" / "john-peter-mary.jsonl"
AXE = ROOT / "tests" / "axe" / "axe.min.js"
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
LOOKS = [(1280, "light", {}), (320, "dark", {"runOnly": ["color-contrast", "scrollable-region-focusable"]})]
"""Widths, colours, and what axe is asked for: all rules once, and then what size and colours can change. 320 px is what
WCAG 2.2 asks for (1.4.10, Reflow)."""
PAGES = {
    "overview": "/overview",
    "usage": "/usage",
    "usage-by-member": "/usage?group=member",
    "usage-empty": "/usage?since=2020-01-01&until=2020-02-01",
    "statement": "/statement",
    "entry": "/statement/entry?entry=email/1",
    "messages": "/messages",
    "orders": "/orders",
    "plans": "/plans",
    "billing": "/billing",
    "users": "/users",
    "user": "/users/peter/profile",
    "credit-owner": "/users/peter/credit-owner",
    "credit-owner-preview": "/users/mary/credit-owner?owner=mary",
    "roles": "/roles",
    "changes": "/changes",
    "password": "/password",
    "not-found": "/nope",
}


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the link of the greeting of `postage up`, which runs meanwhile."""
    folder = tmp_path_factory.mktemp("console")
    ports = {"flower_port": free_port(), "console_port": free_port()}
    up = Program(folder, "up", ["up", str(STORY)], ports, anew=True)
    try:
        wait_until(lambda: up.check() or "Running. Ctrl-C" in up.output, "`postage up` has started everything")
        yield (folder / "var" / "console-link").read_text().strip()
    finally:
        up.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Give a Chromium."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  a large import, often for nothing

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def signed_in(link: str, browser: Any) -> Any:
    """Give the cookies of somebody who has signed in by the link of the greeting."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(link)
    page.get_by_role("button", name="Sign in as John Miller").click()
    assert page.url.endswith("/overview")
    state = context.storage_state()
    context.close()
    return state


@pytest.mark.parametrize("look", LOOKS, ids=["wide-light", "narrow-dark"])
def test_every_screen_can_be_used_by_everybody(link: str, browser: Any, signed_in: Any, look: Any) -> None:
    width, colours, rules = look
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=colours, storage_state=signed_in
    )
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    problems = []
    for name, path in PAGES.items():
        page.goto(link.partition("/link/")[0] + path)
        if page.evaluate("document.documentElement.scrollWidth") > width:
            problems.append((name, "is wider than the window"))
        page.evaluate(AXE.read_text())
        problems += [(name, found["help"]) for found in page.evaluate("rules => axe.run(rules)", rules)["violations"]]
        if "SCREENSHOTS" in os.environ:
            page.screenshot(path=f"{os.environ['SCREENSHOTS']}/{name}-{width}-{colours}.png", full_page=True)
    context.close()

    assert problems == []
    assert [text for text in said if "404 (Not Found)" not in text] == []


def test_a_credit_owner_is_changed_by_keyboard(link: str, browser: Any, signed_in: Any) -> None:
    context = browser.new_context(storage_state=signed_in)
    page = context.new_page()
    page.goto(link.partition("/link/")[0] + "/users/mary/credit-owner")
    page.get_by_label("john").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Change the credit owner").press("Enter")
    page.get_by_text("Done: the credit owner is changed.").wait_for()
    said = page.get_by_text("mary spends their own credits.").count()
    context.close()

    assert said == 1


def test_pages_can_be_read_without_javascript(link: str, browser: Any, signed_in: Any) -> None:
    context = browser.new_context(storage_state=signed_in, java_script_enabled=False)
    page = context.new_page()
    page.goto(link.partition("/link/")[0] + "/usage")
    page.get_by_role("link", name="By member").click()
    members = page.locator("table").first.get_by_role("rowheader").all_inner_texts()
    context.close()

    assert members == ["mary", "peter", "john"]
