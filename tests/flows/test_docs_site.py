"""The site that `make docs` builds from the Markdown in the repository."""

import subprocess
import sys
from pathlib import Path

import pytest

from worker.cli.main import COMMANDS

pytestmark = pytest.mark.xdist_group("docs-site")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the site, built with no warning."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-b", "html", "docs"]
    built = subprocess.run([*build, folder], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_on_it(site: Path) -> None:
    pages = {file.relative_to(ROOT / "docs").with_suffix("") for file in (ROOT / "docs").rglob("*.md")}

    built = {file.relative_to(site).with_suffix("") for file in site.rglob("*.html")}

    assert pages - built == {Path("README")}  # index stands for it


def test_it_has_every_command_with_its_options(site: Path) -> None:
    page = (site / "commands.html").read_text()

    assert [command.name for command in COMMANDS if f'id="postage-{command.name}"' not in page] == []
    assert "--watch" in page


def test_pages_from_elsewhere_lead_to_pages_of_the_site(site: Path) -> None:
    page = (site / "project" / "readme.html").read_text()

    assert 'href="../operating.html' in page
    assert 'href="python-client.html' in page
    assert ".md" not in [part.partition('"')[0][-3:] for part in page.split('href="')[1:]]
