"""deploy/knative.yaml: its fields exist in Kubernetes and Knative, and its numbers match the server's."""

import copy

import kubernetes_validate
from cloudcoil.models.knative_serving.serving import v1 as knative
from ruamel.yaml import YAML

import app
from server import SETTINGS
from tests.server_process import ROOT, is_ready, serving, wait_until

MANIFEST = YAML(typ="safe").load(ROOT / "deploy/knative.yaml")
SPEC = MANIFEST["spec"]["template"]["spec"]
[CONTAINER] = SPEC["containers"]
ENVIRONMENT = {entry["name"]: entry["value"] for entry in CONTAINER["env"] if "value" in entry}
KNATIVES_OWN = {"containerConcurrency", "timeoutSeconds"}


def round_trip(manifest: dict) -> dict:
    """Return a manifest without the fields that Knative's own model does not have."""
    return knative.Service.model_validate(manifest).model_dump(mode="json", by_alias=True, exclude_unset=True)


def test_every_field_is_in_knatives_schema():
    assert round_trip(MANIFEST) == MANIFEST
    wrong = copy.deepcopy(MANIFEST)
    wrong["spec"]["template"]["spec"]["containers"][0]["replicas"] = 3
    assert round_trip(wrong) == MANIFEST  # an unknown field would be noticed


def test_kubernetes_accepts_the_pod():
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
    pod["spec"] = {name: value for name, value in copy.deepcopy(SPEC).items() if name not in KNATIVES_OWN}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        # Kubernetes requires it; Knative fills it in.
        pod["spec"]["containers"][0][probe]["httpGet"]["port"] = CONTAINER["ports"][0]["containerPort"]
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_concurrency_matches_the_servers():
    annotations = MANIFEST["spec"]["template"]["metadata"]["annotations"]
    workers = int(ENVIRONMENT["THREADS"]) + app.EXTRA_WORKERS
    assert CONTAINER["resources"]["limits"]["cpu"] == f"{ENVIRONMENT['THREADS']}000m"
    assert int(annotations["autoscaling.knative.dev/target"]) == workers
    assert SPEC["containerConcurrency"] == workers + int(ENVIRONMENT["MAX_QUEUE"])


def test_api_key_secret_is_required():
    [key] = [entry["valueFrom"] for entry in CONTAINER["env"] if entry["name"] == "BANANA_API_KEY"]
    assert key == {"secretKeyRef": {"name": "classifier", "key": "api-key"}}  # not optional


def test_probes_follow_the_start_of_the_server(tmp_path):
    [port] = CONTAINER["ports"]
    assert port["name"] == "http1" and "PORT" not in ENVIRONMENT
    paths = {CONTAINER[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    with serving(tmp_path, stub=True, BANANA_API_KEY="key", **ENVIRONMENT) as served:
        assert {served.get(path).status_code for path in paths} == {503}
        (tmp_path / "loaded").touch()
        wait_until(lambda: is_ready(served), "the server is ready")
        assert {served.get(path).status_code for path in paths} == {200}


def test_knatives_timeout_is_longer_than_the_servers():
    assert SPEC["timeoutSeconds"] > max(SETTINGS.RESPONSE_TIMEOUT_S, SETTINGS.SHUTDOWN_GRACE_S)
