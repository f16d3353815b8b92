"""How `make docs` builds the site: from the Markdown that is read in the repository, and the commands from the code.

Pages that stand outside of docs/ are those of docs/project/ on the site. Links to code lead to a copy of the file.
"""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

project = "Postage"
author = "The developers of Postage"
html_title = project
html_theme = "furo"
html_show_copyright = False
html_show_sourcelink = False

extensions = ["myst_parser", "sphinx_click", "sphinxcontrib.mermaid"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["README.md"]  # the contents for those who read in the repository; on the site it is index.md
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
nitpicky = True

DOCS = Path(__file__).parent
ROOT = DOCS.parent
OUTSIDE = {
    "project/readme": ROOT / "README.md",
    "project/changelog": ROOT / "CHANGELOG.md",
    "project/contributing": ROOT / "CONTRIBUTING.md",
    "project/python-client": ROOT / "clients/python/README.md",
    "project/node-client": ROOT / "clients/node/README.md",
}
"""The pages that stand outside of docs/."""
ON_THE_SITE = {file: DOCS / f"{page}.md" for page, file in OUTSIDE.items()} | {DOCS / "README.md": DOCS / "index.md"}
LINK = re.compile(r"\]\((?!https?:|mailto:|#)(?P<target>[^)#\s]+)")


ALL_DECISIONS = """
```{toctree}
:hidden:
:glob:

0*
```
"""


def setup(app: Sphinx) -> None:
    """Have each page read by `read_page`, and the help of each command by `read_help`."""
    app.connect("source-read", read_page)
    app.connect("sphinx-click-process-description", read_help)


def read_page(_app: Sphinx, page: str, source: list[str]) -> None:
    """Put the text of a page into `source`, with links that lead where its targets are on the site."""
    file = OUTSIDE.get(page, DOCS / f"{page}.md")

    def link(found: re.Match[str]) -> str:
        target = (file.parent / found["target"]).resolve()
        return "](" + os.path.relpath(ON_THE_SITE.get(target, target), (DOCS / page).parent)

    source[0] = LINK.sub(link, file.read_text(encoding="utf-8")) + (ALL_DECISIONS if page == "decisions/README" else "")


def read_help(_app: Sphinx, _context: object, lines: list[str]) -> None:
    """Let POSTAGE_… be a word: in reStructuredText an underscore at the end of a word makes a link of it."""
    lines[:] = [line.replace("_", r"\_") for line in lines]
