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
ENV = {name: value or ("postage:secret" if name.endswith("AUTH") else "secret") for name, value in EXAMPLE_ENV.items()}
"""The variables of .env.example, with those set that everybody must set."""
VARIABLE = re.compile(r"(?<!\$)\$\{(?P<name>[A-Z_]+)(?::(?P<kind>[?-])(?P<rest>[^${}]*))?\}")
"""A variable that has no other within it."""


def interpolate(value: Any, env: dict[str, str]) -> Any:
    """Fill in the variables of a value as Compose does, the innermost first."""
    if isinstance(value, dict):
        return {name: interpolate(part, env) for name, part in value.items()}
    if isinstance(value, list):
        return [interpolate(part, env) for part in value]
    if isinstance(value, str):
        while (filled := VARIABLE.sub(lambda match: env.get(match["name"]) or _default(match), value)) != value:
            value = filled
        return value.replace("$$", "$")
    return value


def _default(match: re.Match[str]) -> str:
    assert match["kind"] == "-", f"{match['name']} is needed, but is not set"
    return match["rest"]


def read_services(env: dict[str, str]) -> dict[str, Service]:
    """Give the services. A variable that stands in an environment without a value is passed on, if it is set."""
    services: dict[str, Service] = interpolate(RAW["services"], env)
    for service in services.values():
        given = service.get("environment", {})
        values = {name: env.get(name) if value is None else value for name, value in given.items()}
        service["environment"] = {name: value for name, value in values.items() if value is not None}
    return services


TEXT = (ROOT / "compose.yaml").read_text()
RAW = yaml.safe_load(TEXT)
SERVICES = read_services(ENV)
POSTAGE_SERVICES = {name: service for name, service in SERVICES.items() if service["image"] == "postage"}
WORKERS = {name: service for name, service in POSTAGE_SERVICES.items() if service["command"][0] == "worker"}


def queues_of(service: Service) -> set[str]:
    """Give the queues that a worker's command names."""
    command = service["command"]
    return set(command[command.index("--queues") + 1].split(","))
