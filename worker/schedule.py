"""What beat asks for."""

from typing import Any


def schedule(sweep_s: float, audit_s: float) -> dict[str, dict[str, Any]]:
    """Beat's table. A round that no worker has taken up by the next one is dropped, so they never pile up."""
    return {
        "sweep": {"task": "upkeep.sweep", "schedule": sweep_s, "args": [{}], "options": {"expires": 2 * sweep_s}},
        "audit": {"task": "upkeep.audit", "schedule": audit_s, "args": [{}], "options": {"expires": 2 * audit_s}},
    }
