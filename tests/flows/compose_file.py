"""The services of compose.yaml, as Compose reads them with .env.example."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]

Service = dict[str, Any]


def read_env(file: Path) -> dict[str, str]:
    """Give the variables of an environment file."""
    lines = (line.strip() for line in file.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


EXAMPLE_ENV = read_env(ROOT / ".env.example")
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?::(?P<kind>[?-])(?P<rest>[^}]*))?\}")


def interpolate(value: Any) -> Any:
    """Fill in the variables of a value as Compose does, with those of .env.example."""
    if isinstance(value, dict):
        return {name: interpolate(part) for name, part in value.items()}
    if isinstance(value, list):
        return [interpolate(part) for part in value]
    if isinstance(value, str):
        return VARIABLE.sub(lambda match: EXAMPLE_ENV.get(match["name"]) or _default(match), value)
    return value


def _default(match: re.Match[str]) -> str:
    assert match["kind"] == "-", f"{match['name']} is needed, but .env.example lacks it"
    return match["rest"]


TEXT = (ROOT / "compose.yaml").read_text()
RAW = yaml.safe_load(TEXT)
SERVICES: dict[str, Service] = interpolate(RAW["services"])
POSTAGE_SERVICES = {name: service for name, service in SERVICES.items() if service["image"] == "postage"}
WORKERS = {name: service for name, service in POSTAGE_SERVICES.items() if service["command"][0] == "worker"}


def queues_of(service: Service) -> set[str]:
    """Give the queues that a worker's command names."""
    command = service["command"]
    return set(command[command.index("--queues") + 1].split(","))
