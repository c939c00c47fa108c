"""deploy/knative.yaml: fields that Kubernetes and Knative know, and numbers that are the server's."""

import copy

import kubernetes_validate
import pytest
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
    """Return what is left of a manifest in Knative's own model, which drops what it does not know."""
    return knative.Service.model_validate(manifest).model_dump(mode="json", by_alias=True, exclude_unset=True)


def test_every_field_is_in_knatives_schema():
    assert round_trip(MANIFEST) == MANIFEST


@pytest.mark.parametrize(
    "where", [("spec",), ("spec", "template", "spec"), ("spec", "template", "spec", "containers", 0)]
)
def test_a_field_that_is_not_in_knatives_schema_is_found_out(where):
    wrong = copy.deepcopy(MANIFEST)
    place = wrong
    for key in where:
        place = place[key]
    place["replicas"] = 3
    assert round_trip(wrong) == MANIFEST


def test_the_pod_is_one_that_kubernetes_takes():
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
    pod["spec"] = {name: value for name, value in copy.deepcopy(SPEC).items() if name not in KNATIVES_OWN}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        # Knative fills it in, and Kubernetes demands it.
        pod["spec"]["containers"][0][probe]["httpGet"]["port"] = CONTAINER["ports"][0]["containerPort"]
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_a_replica_is_given_as_many_calls_as_the_server_takes():
    annotations = MANIFEST["spec"]["template"]["metadata"]["annotations"]
    workers = int(ENVIRONMENT["THREADS"]) + app.EXTRA_WORKERS
    assert CONTAINER["resources"]["limits"]["cpu"] == f"{ENVIRONMENT['THREADS']}000m"
    assert int(annotations["autoscaling.knative.dev/target"]) == workers
    assert SPEC["containerConcurrency"] == workers + int(ENVIRONMENT["MAX_QUEUE"])


def test_without_the_secret_of_its_key_it_does_not_start():
    [key] = [entry["valueFrom"] for entry in CONTAINER["env"] if entry["name"] == "BANANA_API_KEY"]
    assert key == {"secretKeyRef": {"name": "classifier", "key": "api-key"}}  # not optional


def test_the_server_starts_with_these_settings_and_the_probes_see_it_load(tmp_path):
    [port] = CONTAINER["ports"]
    assert port["name"] == "http1" and "PORT" not in ENVIRONMENT
    paths = {CONTAINER[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    with serving(tmp_path, stub=True, BANANA_API_KEY="key", **ENVIRONMENT) as served:
        assert {served.get(path).status_code for path in paths} == {503}
        (tmp_path / "loaded").touch()
        wait_until(lambda: is_ready(served), "the server is ready")
        assert {served.get(path).status_code for path in paths} == {200}


def test_the_servers_own_answer_comes_before_knative_gives_up():
    assert SPEC["timeoutSeconds"] > max(SETTINGS.RESPONSE_TIMEOUT_S, SETTINGS.SHUTDOWN_GRACE_S)
