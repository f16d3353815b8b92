"""The manifests under deploy/kubernetes: that they are valid, complete, safe, and start what Compose starts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.queues import Queue
from tests.flows.compose_file import POSTAGE_SERVICES, ROOT, WORKERS
from worker.readings import BrokerStanding
from worker.settings import PLACEHOLDER, PREFIX, Settings, SettingsError

FOLDER = ROOT / "deploy" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
FOREIGN = {"kustomize.config.k8s.io", "keda.sh"}
"""Groups whose schemas do not come with Kubernetes."""

Manifest = dict[str, Any]

MANIFESTS: list[Manifest] = [document for file in FILES for document in yaml.safe_load_all(file.read_text())]
DEPLOYMENTS = {found["metadata"]["name"]: found for found in MANIFESTS if found["kind"] == "Deployment"}
JOBS = {found["metadata"]["name"]: found for found in MANIFESTS if found["kind"] == "Job"}
WORKLOADS = {**DEPLOYMENTS, "migrate": JOBS["postage-migrate"]}
SCALED = {found["metadata"]["name"]: found["spec"] for found in MANIFESTS if found["kind"] == "ScaledObject"}
KUSTOMIZATION = next(found for found in MANIFESTS if found["kind"] == "Kustomization")


def pod(name: str) -> Manifest:
    spec: Manifest = WORKLOADS[name]["spec"]["template"]["spec"]
    return spec


def container(name: str) -> Manifest:
    [only] = pod(name)["containers"]
    return dict(only)


def environment(name: str) -> dict[str, str]:
    """Give the environment that Kubernetes makes for a workload."""
    kept = {(found["kind"], found["metadata"]["name"]): found for found in MANIFESTS if "metadata" in found}
    variables: dict[str, str] = {}
    for source in container(name)["envFrom"]:
        [(kind, reference)] = source.items()
        found = kept["ConfigMap" if kind == "configMapRef" else "Secret", reference["name"]]
        variables |= found.get("data", {}) | found.get("stringData", {})
    return variables | {variable["name"]: variable["value"] for variable in container(name).get("env", [])}


def test_every_manifest_follows_the_schemas_of_kubernetes(tmp_path: Path) -> None:
    """None of their fields is misspelled or unknown."""
    plain = [found for found in MANIFESTS if found["apiVersion"].split("/")[0] not in FOREIGN]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(plain))
    result = subprocess.run(
        [Path(sys.executable).parent / "kubernetes-validate", "--strict", tmp_path / "all.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert len(plain) == len(MANIFESTS) - 1 - len(SCALED)


def test_every_file_is_applied() -> None:
    assert {file.name for file in FILES} == {*KUSTOMIZATION["resources"], "kustomization.yaml"}
    assert all(container(name)["image"].startswith(f"{KUSTOMIZATION['images'][0]['name']}:") for name in WORKLOADS)


@pytest.mark.parametrize("name", POSTAGE_SERVICES)
def test_the_same_processes_run_as_with_compose(name: str) -> None:
    """Their commands are those that tests run."""
    words = [word for word in POSTAGE_SERVICES[name]["command"] if word]
    given = [word.removesuffix("=") for word in container(name)["args"]]

    assert given == words
    assert set(WORKLOADS) == set(POSTAGE_SERVICES)


@pytest.mark.parametrize("name", POSTAGE_SERVICES)
def test_a_secret_is_passed_only_to_what_needs_it(name: str) -> None:
    """The same as with Compose, which has its answers in the broker, and no Sentinels."""
    secret = {variable for variable, value in environment(name).items() if PLACEHOLDER in value}
    for_compose = {"POSTAGE_DATABASE_URL", "POSTAGE_BROKER_URL", "POSTAGE_SMTP_URL", "POSTAGE_SMS_URL"}

    assert secret == POSTAGE_SERVICES[name]["environment"].keys() & (for_compose | {"POSTAGE_FLOWER_AUTH"})


@pytest.mark.parametrize("name", WORKLOADS)
def test_settings_are_accepted_once_the_passwords_are_replaced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [variable for variable in os.environ if variable.startswith(PREFIX)]:
        monkeypatch.delenv(variable)
    for variable, value in environment(name).items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match="replace it with one of your own"):
        Settings.from_environment()
    for variable, value in environment(name).items():
        monkeypatch.setenv(variable, value.replace(PLACEHOLDER, ":chosen-"))

    Settings.from_environment()


@pytest.mark.parametrize("name", WORKLOADS)
def test_no_variables_of_services_are_added(name: str) -> None:
    """A Service called postage-flower would set POSTAGE_FLOWER_PORT to tcp://…, and Postage would not start."""
    assert pod(name)["enableServiceLinks"] is False


@pytest.mark.parametrize("name", WORKLOADS)
def test_containers_are_read_only_unprivileged_and_limited(name: str) -> None:
    assert pod(name)["automountServiceAccountToken"] is False
    assert pod(name)["securityContext"]["runAsNonRoot"] is True
    assert f"--uid {pod(name)['securityContext']['runAsUser']} " in (ROOT / "Dockerfile").read_text()
    assert pod(name)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container(name)["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_may_finish_what_it_has_begun(name: str) -> None:
    assert pod(name)["terminationGracePeriodSeconds"] > Settings.model_fields["lease_s"].default


@pytest.mark.parametrize("name", ["beat", "worker-billing"])
def test_what_must_be_alone_is_never_there_twice(name: str) -> None:
    """Not even while it is replaced. Nor is it scaled."""
    assert DEPLOYMENTS[name]["spec"]["replicas"] == 1
    assert DEPLOYMENTS[name]["spec"]["strategy"] == {"type": "Recreate"}
    assert name not in SCALED


def test_probes_start_no_python_and_ask_neither_database_nor_broker() -> None:
    for name in DEPLOYMENTS:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            found = container(name).get(probe, {})
            assert "postage" not in json.dumps(found)
            assert "python" not in json.dumps(found)
    for name in WORKERS:
        port = container(name)["ports"][0]
        assert container(name)["livenessProbe"]["tcpSocket"] == {"port": port["name"]}
        assert environment(name)["POSTAGE_METRICS_PORT"] == str(port["containerPort"])


def test_the_probe_of_beat_sees_whether_it_stands_still(tmp_path: Path) -> None:
    program, option, check = container("beat")["livenessProbe"]["exec"]["command"]
    alive = [program, option, check.replace("/tmp", str(tmp_path))]  # noqa: S108  the path that is replaced
    schedule = tmp_path / "beat-schedule"

    assert subprocess.run(alive, check=False).returncode != 0
    schedule.touch()
    assert subprocess.run(alive, check=False).returncode == 0
    os.utime(schedule, (0, 0))
    assert subprocess.run(alive, check=False).returncode != 0


def test_workers_are_scaled_by_the_metric_that_they_serve() -> None:
    metric, *_ = BrokerStanding(Settings()).describe()

    assert set(SCALED) == {"worker-email", "worker-sms", "worker-bulk"}
    for name, spec in SCALED.items():
        queue = Queue(name.removeprefix("worker-"))
        [trigger] = spec["triggers"]
        assert spec["scaleTargetRef"] == {"name": name}
        assert spec["minReplicaCount"] >= 1
        assert trigger["metadata"]["query"] == f'max({metric.name}{{queue="{queue}"}})'


def test_one_worker_of_a_kind_at_a_time_is_drained() -> None:
    budgets = {found["metadata"]["name"]: found["spec"] for found in MANIFESTS if "Disruption" in found["kind"]}

    assert set(budgets) == set(SCALED)
    for name, spec in budgets.items():
        assert spec["maxUnavailable"] == 1
        assert spec["selector"] == DEPLOYMENTS[name]["spec"]["selector"]
