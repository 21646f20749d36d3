"""What lies in deploy/ is read by the schemas of what will read it."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import ROOT

from curate.engine.driver import Progress
from curate.engine.tasks import Tally
from curate.metrics import RunCollector
from curate.recipe import load

DEPLOY = ROOT / "deploy"
SCHEMAS = ROOT / "tests" / "data" / "schemas"


def documents(path: Path) -> list[dict[str, Any]]:
    """All YAML documents of a file."""
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def closed(schema: Any) -> Any:
    """A CRD's schema as the API server applies it: unknown fields are refused, int-or-string is both."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("name", ["rayjob", "raycluster"])
def test_kuberay_files_fit_the_operators_schema(name: str) -> None:
    schemas = json.loads(gzip.decompress((SCHEMAS / "kuberay-v1.7.0.json.gz").read_bytes()))
    (document,) = documents(DEPLOY / "kuberay" / f"{name}.yaml")
    schema = closed(schemas[document["kind"]])
    schema["properties"]["metadata"] = {"type": "object"}
    check = jsonschema.Draft7Validator(schema)  # `jsonschema.validate` would check 400 kB of schema, for a minute
    assert [error.message for error in check.iter_errors(document)] == []
    document["spec"]["typo"] = 1
    assert [error.message for error in check.iter_errors(document)] != []


@pytest.mark.parametrize("name", ["rayjob", "raycluster"])
def test_kuberay_clusters_are_closed_and_scale_from_no_gpu(name: str) -> None:
    (document,) = documents(DEPLOY / "kuberay" / f"{name}.yaml")
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["networkPolicy"]["mode"] == "DenyAllIngress"
    assert cluster["enableInTreeAutoscaling"] is True
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert (groups["gpu"]["minReplicas"], groups["cpu"]["minReplicas"]) == (0, 1)
    for group in (cluster["headGroupSpec"], *groups.values()):
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert limits == requests  # Ray sees the limits; a pod that asked for less would be put beside too many


def test_kubernetes_files_fit_the_api() -> None:
    for name in ("common", "models", "networkpolicy"):
        done = subprocess.run(
            [Path(sys.executable).with_name("kubernetes-validate"), "--strict", DEPLOY / "kuberay" / f"{name}.yaml"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_no_key_is_passed_on_empty_and_no_pod_waits_for_models_it_may_not_need() -> None:
    secret = next(d for d in documents(DEPLOY / "kuberay" / "common.yaml") if d["kind"] == "Secret")
    assert "" not in secret["stringData"].values()
    for name in ("rayjob", "raycluster"):
        assert "persistentVolumeClaim" not in json.dumps(documents(DEPLOY / "kuberay" / f"{name}.yaml"))


def test_the_recipe_of_the_job_loads(tmp_path: Path) -> None:
    config = next(d for d in documents(DEPLOY / "kuberay" / "common.yaml") if d["kind"] == "ConfigMap")
    where = tmp_path / "recipe.toml"
    where.write_text(config["data"]["recipe.toml"], "utf-8")
    (job,) = documents(DEPLOY / "kuberay" / "rayjob.yaml")
    loaded = load(where, re.findall(r"--set (\S+)", job["spec"]["entrypoint"]))
    assert (loaded.engine.gpu_workers, loaded.run.log) == (64, "json")


def test_ray_up_fits_rays_own_schema() -> None:
    import ray.autoscaler

    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text("utf-8"))
    (cluster,) = documents(DEPLOY / "ray-up.yaml")
    assert [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(cluster)] == []
    assert cluster["head_node_type"] in cluster["available_node_types"]
    starts = (*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"])
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)


def test_compose_fits_its_schema_and_opens_no_port_to_the_network() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text("utf-8"))
    assert [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(compose)] == []
    assert set(compose["services"]) == {"head", "worker", "pages", "prometheus", "grafana"}
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    empty = [
        e for s in compose["services"].values() for e in dict(s.get("environment", {})).items() if ":-}" in str(e[1])
    ]
    assert [name for name, _ in empty if name.startswith("AWS_")] == []
    mounted = [m.split(":")[0] for s in compose["services"].values() for m in s["volumes"] if m.startswith("./")]
    assert [path for path in mounted if not (DEPLOY / path).is_file()] == []


def test_the_dockerfile_passes_its_lint_and_ends_without_root_or_compiler() -> None:
    lint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([lint, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    stages = (DEPLOY / "Dockerfile").read_text("utf-8").split("\nFROM ")
    assert "USER 1000:1000" in stages[-1]
    assert not re.search(r"\b(gcc|build-essential|git|curl)\b", stages[-1])
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    for copied in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", "\n".join(stages), re.MULTILINE):
        for path in copied.split():
            assert (ROOT / path).exists()
            assert f"!{path}" in ignored


def test_the_board_draws_metrics_that_a_run_has_and_all_of_them() -> None:
    tally = Tally()
    tally.cells["size"], tally.seconds["size"] = 5, 1.0
    tally.failures["size", "truncated"] = 1
    tally.committed("part", 0.1)
    progress = Progress(1, tally=tally, queued={"cpu": 1}, running={"cpu": 1}, workers={"cpu": (1, 0)})
    have = {sample.name for metric in RunCollector(progress).collect() for sample in metric.samples}
    board = json.loads((DEPLOY / "grafana" / "curate.json").read_text("utf-8"))
    text = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    assert set(re.findall(r"curate_\w+", text)) == {name for name in have if not name.endswith("_created")}
    uids = {panel["datasource"]["uid"] for panel in board["panels"]}
    (sources,) = documents(DEPLOY / "grafana" / "datasources.yaml")
    assert uids == {source["uid"] for source in sources["datasources"]}
