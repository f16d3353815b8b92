"""What beat asks for."""

from typing import Any


def schedule(*, sweep_s: float, roll_up_s: float, audit_s: float) -> dict[str, dict[str, Any]]:
    """Beat's table. A round that no worker has taken up by the next one is dropped, so they never pile up."""
    every = {"sweep": sweep_s, "roll_up": roll_up_s, "audit": audit_s}
    return {
        name: {"task": f"upkeep.{name}", "schedule": seconds, "args": [{}], "options": {"expires": 2 * seconds}}
        for name, seconds in every.items()
    }
