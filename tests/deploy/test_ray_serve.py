"""ray_serve.py on a cluster of two nodes on this machine: the same HTTP contract, also when a node is lost.

    make test-ray

Not part of `make test`, because Ray is large and few need it.
"""

import base64
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from banana_dev import Client
from ray._private.node import Node
from ray.cluster_utils import Cluster

from tests.clients import flooding
from tests.server_process import NEWT, TENCH, Served, is_ready, ready, wait_until

JPEG = {"Content-Type": "image/jpeg"}
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
CLIENTS = 6


def on_ray(folder: Path, cluster: Cluster, **environment: str) -> AbstractContextManager[Served]:
    """Run ray_serve.py in the cluster while the context lasts; it is ready when the context begins."""
    return ready(folder, script=("-m", "deploy.ray_serve"), RAY_ADDRESS=cluster.address, **environment)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes, each with room for one replica."""
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def served(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server, ready, with a replica on each node."""
    folder = tmp_path_factory.mktemp("ray")
    settings = {"MIN_REPLICAS": "2", "MAX_REPLICAS": "2", "MAX_QUEUE": "4", "BANANA_API_KEY": "key"}
    with on_ray(folder, cluster, **settings) as served:
        yield served


def replicas_of(node: Node) -> list[int]:
    """Return the process ids of the replicas on a node."""
    [raylet] = node.all_processes["raylet"]
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat")]
    children = [int(stat.split()[0]) for stat in stats if stat.rpartition(")")[2].split()[1] == str(raylet.process.pid)]
    return [pid for pid in children if Path(f"/proc/{pid}/cmdline").read_text().startswith("ray::ServeReplica")]


def refused(served: Served) -> float:
    """Return the number of responses with status 503."""
    return served.metric('classifier_requests_total{status="503"}', {"X-Banana-API-Key": "key"})


def post(served: Served, **arguments):
    """POST with the key."""
    headers = arguments.pop("headers", {}) | {"X-Banana-API-Key": "key"}
    return served.post(headers=headers, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"json": {"image": base64.b64encode(TENCH.read_bytes()).decode(), "top_k": 2}},
        {"data": TENCH.read_bytes(), "headers": JPEG, "params": {"top_k": "2"}},
        {"files": {"image": TENCH.read_bytes()}, "data": {"top_k": "2"}},
    ],
    ids=["json", "bytes", "form"],
)
def test_accepts_every_way_to_send_an_image(served, arguments):
    result = post(served, **arguments).json()
    assert (result["class_id"], result["class_name"], len(result["predictions"])) == (0, "tench", 2)
    assert set(result["timing_ms"]) == {"decode", "model", "total"}


def test_several_images_keep_their_order(served):
    images = [base64.b64encode(path.read_bytes()).decode() for path in (NEWT, TENCH)]
    assert [result["class_id"] for result in post(served, json={"images": images}).json()["results"]] == [26, 0]


def test_health_needs_no_key_and_names_what_runs(served):
    health = served.get("/healthcheck").json()
    assert health["state"] == "healthy"
    assert health["execution_provider"].endswith("ExecutionProvider")


@pytest.mark.parametrize(
    ("key_word", "arguments"),
    [("JPEG", {"data": b"not an image"}), ("top_k", {"data": TENCH.read_bytes(), "params": {"top_k": "0"}})],
)
def test_errors_of_a_replica_name_the_cause_but_not_ray(served, key_word, arguments):
    response = post(served, headers=JPEG, **arguments)
    assert response.status_code == 422
    assert set(response.json()["error"]) == {"type", "message"}
    assert key_word in response.json()["error"]["message"]
    assert "Traceback" not in response.text and "ray" not in response.text


def test_503_with_retry_after_when_all_queues_are_full(served):
    with flooding(served, clients=20, **{"X-Banana-API-Key": "key"}) as flood:
        wait_until(
            lambda: flood.statuses[200] >= 50 and flood.statuses[503] >= 50, "some are accepted and some are not"
        )
    assert not flood.faults
    assert set(flood.statuses) == {200, 503}


def test_lost_node_loses_no_request(served, cluster):
    [lost] = cluster.worker_nodes
    [replica] = replicas_of(lost)
    refused_before = refused(served)
    image = base64.b64encode(TENCH.read_bytes()).decode()
    classes: list[int] = []
    over = threading.Event()

    def call() -> None:
        client = Client("key", served.url, verbosity="")
        while not over.is_set():
            classes.append(client.call("/", json={"image": image}, headers={}, retry_timeout=60)[0]["class_id"])

    callers = [threading.Thread(target=call) for _ in range(CLIENTS)]
    with flooding(served, clients=2, **{"X-Banana-API-Key": "key"}) as flood:
        for caller in callers:
            caller.start()
        wait_until(lambda: len(classes) > 50, "two nodes respond")
        os.kill(replica, signal.SIGSTOP)
        time.sleep(0.5)  # in which it receives requests that it cannot finish
        os.kill(replica, signal.SIGKILL)
        cluster.remove_node(lost, allow_graceful=False)
        so_far = len(classes)
        wait_until(lambda: len(classes) > so_far + 100, "the remaining node responds")
        over.set()
        for caller in callers:
            caller.join()
    assert set(classes) == {0}
    assert not flood.faults
    assert refused(served) > refused_before  # so some were lost, and sent again
    assert is_ready(served)


def test_sigterm_stops_the_server_and_keeps_the_replicas(served, cluster, tmp_path):
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(60) == 0
    with on_ray(tmp_path, cluster, MODEL_PATH="nowhere.onnx") as another:  # with which no replica could start
        assert another.post(data=TENCH.read_bytes(), headers=JPEG).json()["class_id"] == 0
