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
from ray.serve.exceptions import DeploymentUnavailableError

import app
import server
from runtime.errors import Unavailable
from runtime.settings import ROOT, BadSetting, RaySettings, read

SETTINGS = read(RaySettings)
if SETTINGS.MAX_REPLICAS < SETTINGS.MIN_REPLICAS:
    raise BadSetting(f"MAX_REPLICAS={SETTINGS.MAX_REPLICAS} is less than MIN_REPLICAS={SETTINGS.MIN_REPLICAS}")

NAME = "classifier"
WORKERS = SETTINGS.CPUS_PER_REPLICA + app.EXTRA_WORKERS  # calls in a replica
ENVIRONMENT = vars(app.SETTINGS) | {
    "MODEL_PATH": Path(app.SETTINGS.MODEL_PATH).resolve(),
    "THREADS": SETTINGS.CPUS_PER_REPLICA,
    "PYTHONPATH": ROOT,
}


@serve.deployment(
    ray_actor_options={
        "num_cpus": SETTINGS.CPUS_PER_REPLICA,
        "num_gpus": 1 / SETTINGS.REPLICAS_PER_GPU if SETTINGS.REPLICAS_PER_GPU else 0,
        "runtime_env": {"env_vars": {name: str(value) for name, value in ENVIRONMENT.items()}},
    },
    autoscaling_config={
        "min_replicas": SETTINGS.MIN_REPLICAS,
        "max_replicas": SETTINGS.MAX_REPLICAS,
        "target_ongoing_requests": SETTINGS.CPUS_PER_REPLICA,
    },
    max_ongoing_requests=WORKERS,
    logging_config={"enable_access_log": False},  # the server has one
)
class Replica:
    """app.py, in a process of its own on any machine of the cluster."""

    def __init__(self) -> None:
        app.init()

    async def inference(self, model_inputs: dict) -> dict:
        """Do what app.inference does."""
        return await asyncio.to_thread(app.inference, model_inputs)

    def status(self) -> dict:
        """Return what app.status does."""
        return app.status()

    def check_health(self) -> None:
        """Let Ray Serve replace a replica whose model no longer answers."""
        app.warm_up()


class Replicas:
    """What server.py asks of app.py, done by the replicas."""

    WORKERS = SETTINGS.MAX_REPLICAS * WORKERS

    def init(self) -> None:
        """Find the deployment that runs in the cluster, or else deploy; return when it answers."""
        if NAME in serve.status().applications:
            self.handle = serve.get_app_handle(NAME)
        else:
            self.handle = serve.run(Replica.bind(), name=NAME, route_prefix=None)  # type: ignore[attr-defined]
        self.first_status = self.handle.status.remote().result()

    def status(self) -> dict:
        """Return what runs in the replicas, as the first said."""
        return self.first_status

    def warm_up(self) -> None:
        """Raise what Ray raises where no replica answers."""
        self.handle.status.remote().result(timeout_s=server.SETTINGS.RESPONSE_TIMEOUT_S)

    def inference(self, model_inputs: dict) -> dict:
        """Do what app.inference does. Raises Unavailable where the replica was lost, or all have enough to do."""
        response = self.handle.inference.remote(model_inputs)
        try:
            return response.result(timeout_s=server.SETTINGS.RESPONSE_TIMEOUT_S)
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise Unavailable("the machine that was at work on it is gone") from error
        except DeploymentUnavailableError as error:
            raise Unavailable("every machine has enough to do") from error
        except TimeoutError as error:
            response.cancel()
            raise Unavailable(f"there was no answer within {server.SETTINGS.RESPONSE_TIMEOUT_S} s") from error


def main() -> None:
    """Serve until SIGTERM, as server.py does."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(**({} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}))
    serve.start(proxy_location="Disabled")  # the server has the routes, not Ray Serve's own proxies
    replicas = Replicas()
    server.main(replicas, server.load(replicas))


if __name__ == "__main__":
    main()
