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
if SETTINGS.MAX_REPLICAS < SETTINGS.MIN_REPLICAS:
    raise BadSetting(f"MAX_REPLICAS={SETTINGS.MAX_REPLICAS} is less than MIN_REPLICAS={SETTINGS.MIN_REPLICAS}")
CPUS = SETTINGS.CPUS_PER_REPLICA
GPUS = 1 / SETTINGS.REPLICAS_PER_GPU if SETTINGS.REPLICAS_PER_GPU else 0
WORKERS = CPUS + app.EXTRA_WORKERS  # concurrent requests per replica
NAME = "classifier"
MODEL_PATH = Path(app.SETTINGS.MODEL_PATH).resolve()  # for any working directory
ENVIRONMENT = vars(app.SETTINGS) | {"MODEL_PATH": MODEL_PATH, "THREADS": CPUS, "PYTHONPATH": ROOT}
RUNTIME = {"env_vars": {name: str(value) for name, value in ENVIRONMENT.items()}}


@serve.deployment(
    ray_actor_options={"num_cpus": CPUS, "num_gpus": GPUS, "runtime_env": RUNTIME},
    autoscaling_config={
        "min_replicas": SETTINGS.MIN_REPLICAS,
        "max_replicas": SETTINGS.MAX_REPLICAS,
        "target_ongoing_requests": CPUS,
    },
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

    WORKERS = SETTINGS.MAX_REPLICAS * WORKERS

    def init(self) -> None:
        """Connect to the deployment in the cluster, or create it; return when it is ready."""
        if NAME in serve.status().applications:
            self.handle = serve.get_app_handle(NAME)
        else:
            self.handle = serve.run(Replica.bind(), name=NAME, route_prefix=None)  # type: ignore[attr-defined]
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


def main() -> None:
    """Serve until SIGTERM, as server.py does."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(include_dashboard=False)
    serve.start(proxy_location="Disabled")  # server.py has the routes
    replicas = Replicas()
    server.main(replicas, server.load(replicas))


if __name__ == "__main__":
    main()
