"""Each overlay as kustomize resolves it: right for Kubernetes and KEDA, confined, with secrets from Secrets alone, and with
commands that gymq's command line takes."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from gymq.celery import actor_step
from gymq.cli import cli

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
OVERLAY = pytest.mark.parametrize("overlay", OVERLAYS)

#: The oldest Kubernetes that still has its maintainers' support, and the newest that the schemas know.
VERSIONS = ("1.34", "1.37")

#: Kinds that hold pods, and where.
POD_OWNERS = ("Deployment", "StatefulSet", "Job")

pytestmark = pytest.mark.slow


@cache
def resolved(overlay: str) -> list[dict[str, Any]]:
    """Return the objects of an overlay, as kustomize makes them."""
    command = next((argv for argv in (["kustomize", "build"], ["kubectl", "kustomize"]) if shutil.which(argv[0])), None)
    if command is None:
        pytest.skip(f"neither kustomize nor kubectl is installed: the overlay {overlay} is not resolved")
    done = subprocess.run([*command, str(FOLDER / "overlays" / overlay)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def pods(overlay: str) -> dict[str, dict[str, Any]]:
    """Return the spec of each pod of an overlay, by the name of its owner."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in resolved(overlay) if each["kind"] in POD_OWNERS
    }


def containers(overlay: str) -> list[tuple[str, dict[str, Any]]]:
    """Return each container of an overlay, with the name of its pod's owner."""
    return [(name, container) for name, pod in pods(overlay).items() for container in pod["containers"]]


@OVERLAY
@pytest.mark.parametrize("version", VERSIONS)
def test_each_object_follows_the_schema_of_kubernetes(overlay: str, version: str):
    validate = pytest.importorskip("kubernetes_validate", reason="the extra `deploy` is not installed").validate
    checked = [each for each in resolved(overlay) if each["apiVersion"] != "keda.sh/v1alpha1"]
    for each in checked:
        validate(each, version, strict=True)
    assert len(checked) > 10


def test_the_schema_refuses_what_it_does_not_know():
    kubernetes = pytest.importorskip("kubernetes_validate", reason="the extra `deploy` is not installed")
    deployment = next(each for each in resolved("gpu") if each["kind"] == "Deployment")
    with pytest.raises(kubernetes.ValidationError, match="replica'"):
        kubernetes.validate(deployment | {"spec": deployment["spec"] | {"replica": 2}}, VERSIONS[0], strict=True)


def test_each_scaled_object_follows_the_schema_of_keda():
    keda = pytest.importorskip("cloudcoil.models.keda.v1alpha1", reason="the extra `deploy` is not installed")
    scaled = [each for each in resolved("gpu") if each["kind"] == "ScaledObject"]
    for each in scaled:
        # The model drops what it does not know
        read = keda.ScaledObject.model_validate(each)
        assert read.model_dump(by_alias=True, exclude_unset=True, mode="json") == each
    # And each scales a Deployment that exists and says no number itself
    deployments = {each["metadata"]["name"]: each for each in resolved("gpu") if each["kind"] == "Deployment"}
    targets = {each["spec"]["scaleTargetRef"]["name"] for each in scaled}
    assert targets == {"agent", "model", "resource", "executor"}
    assert not [name for name in targets if "replicas" in deployments[name]["spec"]]


@OVERLAY
def test_every_pod_is_confined_and_bounded(overlay: str):
    for name, pod in pods(overlay).items():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
    for name, container in containers(overlay):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert container["resources"]["limits"]["memory"], name
        assert container["resources"]["requests"]["cpu"], name


@OVERLAY
def test_each_worker_has_time_to_drain_and_is_asked_whether_it_lives(overlay: str):
    for name in ("agent", "model", "resource", "executor"):
        pod = pods(overlay)[name]
        needs = actor_step.DRAIN_LIMIT + actor_step.STOP_LIMIT + actor_step.EXIT_LIMIT
        assert pod["terminationGracePeriodSeconds"] > needs, name
        (worker,) = pod["containers"]
        assert worker["startupProbe"]["httpGet"]["path"] == "/healthz"
        assert worker["readinessProbe"]["httpGet"]["path"] == "/readyz"
        # An executor's loop stands still in an outage, and starting it again would mend nothing
        assert ("livenessProbe" in worker) is (name != "executor")
        # And the port that is asked is the one that it opens, beyond loopback
        values = {variable["name"]: variable.get("value") for variable in worker["env"]}
        assert (values["GYMQ_METRICS_HOST"], values["GYMQ_METRICS_PORT"]) == (
            "0.0.0.0",
            str(worker["ports"][0]["containerPort"]),
        )


@OVERLAY
def test_every_image_has_a_tag_and_gymqs_own_are_named_in_the_overlay(overlay: str):
    images = {container["image"] for _, container in containers(overlay)}
    assert all(re.search(r":[\w.-]+$", image) for image in images)
    assert "registry.example/gymq:1" in images


@OVERLAY
def test_secrets_come_from_secrets_alone(overlay: str):
    for name, container in containers(overlay):
        for variable in container.get("env", ()):
            if re.search("REDIS|KEY|AUTH|PASSWORD", variable["name"]):
                assert set(variable["valueFrom"]) == {"secretKeyRef"}, (name, variable["name"])
    assert not [each for each in resolved(overlay) if each["kind"] == "Secret"]
    maps = [each for each in resolved(overlay) if each["kind"] == "ConfigMap"]
    assert not re.search(r"redis://|password", str(maps), re.I)


@OVERLAY
def test_what_a_pod_mounts_and_reads_exists(overlay: str):
    names = {
        kind: {each["metadata"]["name"] for each in resolved(overlay) if each["kind"] == kind}
        for kind in ("ConfigMap", "PersistentVolumeClaim")
    }
    for owner, pod in pods(overlay).items():
        for volume in pod.get("volumes", ()):
            if "configMap" in volume:
                assert volume["configMap"]["name"] in names["ConfigMap"], owner
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in names["PersistentVolumeClaim"], owner
    for owner, container in containers(overlay):
        for variable in container.get("env", ()):
            source = variable.get("valueFrom", {})
            if "configMapKeyRef" in source:
                assert source["configMapKeyRef"]["name"] in names["ConfigMap"], owner
        mounts = {mount["name"] for mount in container.get("volumeMounts", ())}
        claims = {
            claim["metadata"]["name"]
            for each in resolved(overlay)
            if each["kind"] == "StatefulSet"
            for claim in each["spec"]["volumeClaimTemplates"]
        }
        assert mounts <= {volume["name"] for volume in pods(overlay)[owner].get("volumes", ())} | claims, owner


@OVERLAY
def test_the_command_line_takes_every_command(overlay: str):
    seen = 0
    for name, container in containers(overlay):
        command = container.get("command", [])
        if command[:1] != ["gymq"]:
            continue
        maps = {each["metadata"]["name"]: each["data"] for each in resolved(overlay) if each["kind"] == "ConfigMap"}
        values: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            values |= maps[source["configMapRef"]["name"]]
        for variable in container.get("env", ()):
            if "configMapKeyRef" in (source := variable.get("valueFrom", {})):
                values[variable["name"]] = maps[source["configMapKeyRef"]["name"]][source["configMapKeyRef"]["key"]]
        argv = [re.sub(r"\$\((\w+)\)", lambda match, values=values: values[match[1]], word) for word in command[1:]]
        # When it is parsed, and not begun; a mistake raises
        subcommand = cli.get_command(click.Context(cli), argv[0])
        assert subcommand is not None, name
        subcommand.make_context(argv[0], argv[1:])
        seen += 1
    assert seen >= 5


def test_the_first_look_has_rows_for_the_job_that_enqueues_them():
    from gymq.ingest.row_parser import parse_row

    (rows,) = [each["data"]["rows.jsonl"] for each in resolved("try") if each["metadata"]["name"].startswith("gymq-rows")]
    lines = rows.splitlines()
    for line in lines:
        parse_row(line.encode(), where="rows.jsonl", environment="weather", known={"weather"})
    assert len(lines) == 20
