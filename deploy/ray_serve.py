"""Serve from the machines of a Ray cluster: server.py in front, app.py in replicas of Ray Serve.

    python -m deploy.ray_serve                        # a cluster of this machine alone
    RAY_ADDRESS=auto python -m deploy.ray_serve       # the cluster that this machine belongs to

The server and its HTTP contract do not change; its calls of app.py go to replicas that Ray Serve starts, places,
monitors and replaces. Every machine must have this repository and the model at the same paths.
"""

import asyncio
import os
from pathlib import Path

import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError

import app
import server
from runtime.errors import Unavailable
from runtime.settings import ROOT, BadSetting, RaySettings, read

SETTINGS = read(RaySettings)
LEAST, MOST, CPUS = SETTINGS.MIN_REPLICAS, SETTINGS.MAX_REPLICAS, SETTINGS.CPUS_PER_REPLICA
if MOST < LEAST:
    raise BadSetting(f"MAX_REPLICAS={MOST} is less than MIN_REPLICAS={LEAST}")
GPUS = 1 / SETTINGS.REPLICAS_PER_GPU if SETTINGS.REPLICAS_PER_GPU else 0
WORKERS = CPUS + app.EXTRA_WORKERS  # concurrent requests per replica
NAME = "classifier"
PATHS = {"MODEL_PATH": Path(app.SETTINGS.MODEL_PATH).resolve(), "PYTHONPATH": ROOT}  # for any working directory
ENVIRONMENT = {name: str(value) for name, value in (vars(app.SETTINGS) | PATHS | {"THREADS": CPUS}).items()}


@serve.deployment(
    ray_actor_options={"num_cpus": CPUS, "num_gpus": GPUS, "runtime_env": {"env_vars": ENVIRONMENT}},
    autoscaling_config={"min_replicas": LEAST, "max_replicas": MOST, "target_ongoing_requests": CPUS},
    max_ongoing_requests=WORKERS,
    logging_config={"enable_access_log": False},  # the server writes one
)
class Replica:
    """app.py in a separate process, on any machine of the cluster."""

    status = staticmethod(app.status)
    check_health = staticmethod(app.warm_up)  # Ray Serve replaces the replica if it raises

    def __init__(self) -> None:
        app.init()

    async def inference(self, model_inputs: dict) -> dict:
        """Call app.inference."""
        return await asyncio.to_thread(app.inference, model_inputs)


class Replicas:
    """The backend of server.py: app.py's functions, called in the replicas."""

    WORKERS = MOST * WORKERS

    def init(self) -> None:
        """Connect to the deployment in the cluster, or create it; return when it is ready."""
        if NAME not in serve.status().applications:
            serve.run(Replica.bind(), name=NAME, route_prefix=None)  # type: ignore[attr-defined]
        self.handle = serve.get_app_handle(NAME)
        self.first_status = self.handle.status.remote().result()

    def status(self) -> dict:
        """Return the status of the first replica that started."""
        return self.first_status

    def warm_up(self) -> None:
        """Call any replica. Raises Ray's error if none responds."""
        self.handle.status.remote().result(timeout_s=server.SETTINGS.RESPONSE_TIMEOUT_S)

    def inference(self, model_inputs: dict) -> dict:
        """Call app.inference in a replica. Raises Unavailable if the replica is lost, or none responds."""
        response = self.handle.inference.remote(model_inputs)
        try:
            return response.result(timeout_s=server.SETTINGS.RESPONSE_TIMEOUT_S)
        except RayTaskError as error:
            raise error.cause from error
        except (RayActorError, DeploymentUnavailableError) as error:
            raise Unavailable("the replica that processed the request is lost, or none is running") from error
        except TimeoutError as error:
            response.cancel()
            raise Unavailable(f"no replica responded within {server.SETTINGS.RESPONSE_TIMEOUT_S} s") from error


if __name__ == "__main__":  # serve until SIGTERM, as server.py does
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(include_dashboard=False)
    serve.start(proxy_location="Disabled")  # server.py has the routes
    replicas = Replicas()
    server.main(replicas, server.load(replicas))
