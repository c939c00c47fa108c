"""The states of the server, and whether it can process a request in them."""

import asyncio
import signal
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import Any

from sanic import Sanic

from runtime.errors import BackendUnavailable, InvalidModel, Unavailable
from runtime.settings import ServerSettings
from serving.log import logger
from serving.metrics import MODEL
from serving.work_queue import WorkQueue

DRAIN_DELAY_S = 0.5  # for clients to see a 503 and leave: closing a socket resets a request that is on its way
State = Enum("State", {"LOADING": "the model is loading", "READY": "ready", "STOPPING": "the server is stopping"})


@dataclass
class Lifecycle:
    """The server's state, and what moves it to the next; to be used in the event loop only.

    LOADING → READY when the model has processed its warm-up image. Any → STOPPING at a signal, or if the model cannot
    be loaded; that state is the last.
    """

    server: Sanic
    backend: Any  # see server.main
    queue: WorkQueue
    loading: Future  # of the model
    settings: ServerSettings
    state: State = State.LOADING
    deadline: float = 0.0  # when a server that is stopping gives up what is unfinished; monotonic seconds
    is_suspect: bool = False  # a request was a 500, and the model has not processed its warm-up image since

    @property
    def unfinished(self) -> int:
        """The number of pieces of work that are not done, including loading the model."""
        return len(self.queue.pending) + (not self.loading.done())

    def start(self) -> None:
        """Handle signals, and wait for the model in the background; until it is loaded, requests get a 503."""
        loop = asyncio.get_running_loop()

        def on_signal(*_: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.stop)

        # Not loop.add_signal_handler: uvloop loses a signal between two of its runs, and Sanic begins the second now.
        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(signal.SIGHUP, on_signal)
        asyncio.wrap_future(self.loading).add_done_callback(self._on_loaded)
        host, port = self.settings.HOST, self.settings.PORT
        if not self.settings.BANANA_API_KEY and host not in ("127.0.0.1", "::1", "localhost"):
            logger.warning("no API key is set: anyone who can reach this port can use it; set BANANA_API_KEY or HOST")
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # one that a browser can open
        url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
        logger.info("listening", extra={"fields": {"url": url, "host": host, "port": port}})

    def _on_loaded(self, loaded: asyncio.Future) -> None:
        if error := loaded.exception():
            is_explained = isinstance(error, InvalidModel | BackendUnavailable)
            logger.error("the model cannot be loaded: %s", error, exc_info=None if is_explained else error)
            self.stop()
            return
        MODEL.info({name: str(value) for name, value in self.backend.status().items()})
        if self.state is State.LOADING:
            self.state = State.READY
        logger.info("ready", extra={"fields": self.backend.status()})

    def stop(self) -> None:
        """Stop when all work is done; called again, do not wait for it."""
        logger.info("stopping", extra={"fields": {"pending": self.unfinished}})
        is_first = self.state is not State.STOPPING
        self.deadline = monotonic() + (self.settings.SHUTDOWN_GRACE_S if is_first else 0)
        if is_first:
            self.state = State.STOPPING
            self.server.add_task(self._stop_when_drained(), name="drain")

    async def _stop_when_drained(self) -> None:
        # Sanic loses a stop that comes before it serves; from then on the port answers 503.
        while not self.server.state.is_running or (self.unfinished and monotonic() < self.deadline):
            await asyncio.sleep(0.02)
        await asyncio.sleep(DRAIN_DELAY_S)
        # For requests that are still arriving.
        self.server.config.GRACEFUL_SHUTDOWN_TIMEOUT = max(0.0, self.deadline - monotonic())
        self.server.stop()

    def require_ready(self) -> None:
        """Raise Unavailable unless requests are processed: while the model loads, and when the server is stopping."""
        if self.state is not State.READY:
            raise Unavailable(self.state.value)

    async def require_healthy(self) -> None:
        """Raise Unavailable also if a request is stuck, or one was a 500 and the model fails on its warm-up image."""
        self.require_ready()
        if self.queue.longest_running_s > self.settings.RESPONSE_TIMEOUT_S:
            raise Unavailable(f"a request has been running for {self.queue.longest_running_s:.0f} s")
        if self.is_suspect:
            try:
                await self.queue.run(self.backend.warm_up)
            except Unavailable:
                return  # the queue is full, which says nothing about the model
            except Exception as error:  # any of the execution provider
                logger.exception("the model fails on its warm-up image")
                raise Unavailable("the model fails on its own warm-up image") from error
            self.is_suspect = False
