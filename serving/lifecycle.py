"""The states of a server: loading, ready, failing, stopping; and so whether a call can be taken."""

import asyncio
import signal
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from types import FrameType
from typing import Any

from sanic import Sanic

from runtime.errors import BackendUnavailable, InvalidModel, Unavailable
from serving.log import logger
from serving.metrics import MODEL
from serving.work_queue import WorkQueue

DRAIN_DELAY_S = 0.5  # for clients to see a 503 and leave: closing a socket resets a request that is on its way
POLL_S = 0.02


@dataclass
class Lifecycle:
    """What state the server is in, and what brings it into the next; touched in the event loop only."""

    backend: Any  # see server.main
    queue: WorkQueue
    loading: Future  # of the model
    grace_s: float  # that work may take to finish once the server is to stop
    stuck_s: float  # in work, after which a call is taken to be stuck
    ready: bool = False  # the model has answered its first picture
    model_failing: bool = False  # the model was loaded, and fails on its warm-up image now
    stopping: asyncio.Task | None = None  # new work is refused
    deadline: float = 0.0  # monotonic seconds at which a server that is stopping gives up what is not finished
    checking: asyncio.Task | None = None  # whether the model still answers

    @property
    def unfinished(self) -> int:
        """How many pieces of work are not done, loading the model among them."""
        return self.queue.pending + (not self.loading.done())

    def watch_model_load(self, server: Sanic) -> None:
        """Be ready when the model is loaded; stop the server if that fails."""

        def on_loaded(loaded: asyncio.Future) -> None:
            if error := loaded.exception():
                # A traceback is for what nobody foresaw.
                known = isinstance(error, InvalidModel | BackendUnavailable)
                logger.error("%s", error if known else "the model cannot be loaded", exc_info=None if known else error)
                if not self.stopping:
                    self.stop(server)
                return
            MODEL.info({name: str(value) for name, value in self.backend.status().items()})
            self.ready = True
            logger.info("ready", extra={"fields": self.backend.status()})

        asyncio.wrap_future(self.loading).add_done_callback(on_loaded)

    def install_signal_handlers(self, server: Sanic) -> None:
        """Stop on SIGTERM, SIGHUP and Ctrl-C. Not before Sanic has started: until then it has them ignored."""
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: FrameType | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.stop, server)

        # Not loop.add_signal_handler: uvloop loses a signal between two of its runs, and Sanic begins the second now.
        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            signal.signal(signal.SIGHUP, on_signal)

    def stop(self, server: Sanic) -> None:
        """Stop when all work is done; when told so again, give it up."""
        logger.info("stopping", extra={"fields": {"pending": self.unfinished}})
        self.deadline = monotonic() + (0 if self.stopping else self.grace_s)
        self.stopping = self.stopping or asyncio.create_task(self._drain(server))

    def require_ready(self) -> None:
        """Raise Unavailable before the model has answered its first image, and once the server is to stop."""
        if self.stopping:
            raise Unavailable("the server is stopping")
        if not self.ready:
            raise Unavailable("the model is loading")

    def require_healthy(self) -> None:
        """Raise Unavailable unless the model answers and no call is stuck. A failing model is checked once more."""
        self.require_ready()
        if self.queue.longest_running_s > self.stuck_s:
            raise Unavailable(f"a call has been in work for {self.queue.longest_running_s:.0f} s")
        if self.model_failing:
            self.check_model()
            raise Unavailable("the model fails on its own warm-up picture")

    def check_model(self) -> None:
        """Find out, once at a time, whether the model still answers: a bug in one call need not be its failure."""
        if not self.checking or self.checking.done():
            self.checking = asyncio.create_task(self._check_model())

    async def _check_model(self) -> None:
        try:
            await self.queue.run(self.backend.warm_up)
            self.model_failing = False
        except Unavailable:
            pass  # others are being answered, or will be found to be stuck
        except Exception:  # whatever the execution provider raises
            self.model_failing = True
            logger.exception("the model fails on its warm-up picture")

    async def _drain(self, server: Sanic) -> None:
        # Sanic loses a stop that comes before it serves; from then on the port answers 503.
        while not server.state.is_running or (self.unfinished and monotonic() < self.deadline):
            await asyncio.sleep(POLL_S)
        await asyncio.sleep(DRAIN_DELAY_S)
        # For requests that are still arriving.
        server.config.GRACEFUL_SHUTDOWN_TIMEOUT = max(0.0, self.deadline - monotonic())
        server.stop()
