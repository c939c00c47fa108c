"""Many machines: server.py in front of app.py on the machines of a Ray cluster, by Ray Serve.

    python -m deploy.ray_serve                        # a cluster of this machine alone
    RAY_ADDRESS=auto python -m deploy.ray_serve       # the cluster that this machine belongs to

The server stays what it is, and with it all of the HTTP contract; only what it asks of app.py is done by replicas that
Ray Serve starts, places, watches and replaces. Every machine has this repository and the model at the same paths.
"""

import asyncio
import os
from pathlib import Path

import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

import app
import server
from app import Outcome
from runtime.settings import integer
from serving import routes
from serving.calls import Unavailable

# -- settings, from the environment --------------------------------------------------------------------------------
MIN_REPLICAS = integer("MIN_REPLICAS", 1, 1, 1000)
MAX_REPLICAS = integer("MAX_REPLICAS", max(4, MIN_REPLICAS), MIN_REPLICAS, 1000)
CPUS_PER_REPLICA = integer("CPUS_PER_REPLICA", 1, 1, 1024)  # and so its THREADS
REPLICAS_PER_GPU = integer("REPLICAS_PER_GPU", 0, 0, 100)  # that share one; 0: none is asked for
# Those of app.py hold for the replicas, those of server.py and serving/routes.py for the server.
# ------------------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
NAME = "classifier"
WORKERS = CPUS_PER_REPLICA + app.MORE_WORKERS  # calls in a replica
SETTINGS = {
    "PYTHONPATH": ROOT,
    "MODEL_PATH": Path(app.MODEL_PATH).resolve(),
    "EXECUTION_PROVIDER": app.EXECUTION_PROVIDER,
    "PRECISION": app.PRECISION,
    "THREADS": CPUS_PER_REPLICA,
    "MAX_IMAGES": app.MAX_IMAGES,
    "MAX_PIXELS": app.MAX_PIXELS,
}


@serve.deployment(
    ray_actor_options={
        "num_cpus": CPUS_PER_REPLICA,
        "num_gpus": 1 / REPLICAS_PER_GPU if REPLICAS_PER_GPU else 0,
        "runtime_env": {"env_vars": {name: str(value) for name, value in SETTINGS.items()}},
    },
    autoscaling_config={
        "min_replicas": MIN_REPLICAS,
        "max_replicas": MAX_REPLICAS,
        "target_ongoing_requests": CPUS_PER_REPLICA,
    },
    max_ongoing_requests=WORKERS,
    max_queued_requests=MAX_REPLICAS * WORKERS,
    logging_config={"enable_access_log": False},  # the server has one
)
class Replica:
    """app.py, in a process of its own on any machine of the cluster."""

    def __init__(self) -> None:
        app.init()
        self.under_way = 0

    async def classify(self, inputs: dict) -> Outcome:
        """Do what app.classify does."""
        self.under_way += 1
        try:
            return await asyncio.to_thread(app.classify, inputs, self.under_way == 1)
        finally:
            self.under_way -= 1

    def status(self) -> dict:
        """Return what app.status does."""
        return app.status()

    def check_health(self) -> None:
        """Let Ray Serve replace a replica whose model no longer answers."""
        app.warm_up()


class Replicas:
    """What server.py asks of app.py, done by the replicas."""

    handle: DeploymentHandle
    known: dict  # what the first replica said of itself

    def init(self) -> None:
        """Find the deployment that runs in the cluster, or else deploy; return when it answers."""
        if NAME in serve.status().applications:
            self.handle = serve.get_app_handle(NAME)
        else:
            self.handle = serve.run(Replica.bind(), name=NAME, route_prefix=None)
        self.known = self.handle.status.remote().result()

    def status(self) -> dict:
        """Return what runs in the replicas."""
        return self.known

    def warm_up(self) -> None:
        """Raise what Ray raises where no replica answers."""
        self.handle.status.remote().result(timeout_s=routes.ANSWER_TIMEOUT_S)

    def classify(self, inputs: dict, alone: bool = True) -> Outcome:
        """Do what app.classify does. Raises Unavailable where the replica was lost, or all have enough to do."""
        response = self.handle.classify.remote(inputs)
        try:
            return response.result(timeout_s=routes.ANSWER_TIMEOUT_S)
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise Unavailable("the machine that was at work on it is gone") from error
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise Unavailable("every machine has enough to do") from error
        except TimeoutError as error:
            response.cancel()
            raise Unavailable(f"there was no answer within {routes.ANSWER_TIMEOUT_S} s") from error


def main() -> None:
    """Serve until SIGTERM, as server.py does."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(**({} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}))
    serve.start(proxy_location="Disabled")  # the server has the routes, not Ray Serve's own proxies
    replicas = Replicas()
    # server.py and what it is made of ask this module for everything that concerns the model.
    app.init, app.warm_up, app.status, app.classify = (
        replicas.init,
        replicas.warm_up,
        replicas.status,
        replicas.classify,
    )
    app.WORKERS = MAX_REPLICAS * WORKERS
    server.main()


if __name__ == "__main__":
    main()
