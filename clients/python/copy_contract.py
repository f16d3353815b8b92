# ruff: noqa: INP001  a build hook stands alone
"""Build hook: copies the wire contract, and the code that enqueues, from the server into the package.

There is one source of truth, and it is the server's. In a source distribution the copy is there already.
"""

import re
import shutil
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # the tests copy, and build nothing
    BuildHookInterface = object

HERE = Path(__file__).parent
SERVER = HERE.parents[1]
COPIED = ("models/__init__.py", "models/errors.py", "models/text.py", "models/messages", "tasks/__init__.py",
          "tasks/broker_urls.py", "tasks/client.py", "tasks/job_ids.py", "tasks/queues.py")  # fmt: skip
"""What is copied: modules, and folders of modules."""


def copy_contract(server: Path, package: Path) -> None:
    """Copy the contract into `package`, importing from there."""
    for room in ("models", "tasks"):
        shutil.rmtree(package / room, ignore_errors=True)
    for name in COPIED:
        source = server / name
        for module in sorted(source.glob("*.py")) if source.is_dir() else [source]:
            target = package / module.relative_to(server)
            target.parent.mkdir(parents=True, exist_ok=True)
            text = module.read_text(encoding="utf-8")
            target.write_text(
                re.sub(r"^(\s*from) (models|tasks)\b", rf"\1 {package.name}.\2", text, flags=re.MULTILINE), "utf-8"
            )


class CopyContract(BuildHookInterface):  # type: ignore[misc]
    """Copies before each build that is made from a checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002  hatchling's
        """Copy, unless this is a source distribution."""
        if (SERVER / "models/messages").is_dir():
            copy_contract(SERVER, HERE / "postage_client")
