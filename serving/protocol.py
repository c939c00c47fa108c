"""Corrections of Sanic's HTTP/1.1, each for a fault seen in Sanic 25.12.1.

The comment at each names its test in tests/serving. If that passes without the correction, Sanic has mended the fault.
"""

import asyncio
import re
from collections.abc import AsyncIterator

from sanic.exceptions import BadRequest
from sanic.http import Http, Stage
from sanic.server.protocols.http_protocol import HttpProtocol

# A line that is not a header: its name is not a token, or its value begins with a blank that only Python knows.
NOT_A_HEADER = re.compile(r"\r\n(?![!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t]*(?=\S|\r\n|\Z))")

MANY_CHUNKS = 1_024  # of a body; from then on they must have MIN_CHUNK_BYTES on average
MIN_CHUNK_BYTES = 64
CHUNKS_PER_TURN = 32


class StrictHttp(Http):
    """Reads a request as any proxy does, and responds to requests that Sanic would leave without a response or end."""

    __slots__ = ("chunks",)  # of the body, so far

    # Sanic sets no timeout for a request that claims to want a WebSocket: test_drops_200_slow_connections
    upgrade_websocket = property(lambda self: False, lambda self, value: None)

    def init_for_request(self) -> None:  # test_skips_empty_lines_between_requests
        """Skip the empty line that some clients send after a body (RFC 9112, 2.2); Sanic reads it as a request."""
        super().init_for_request()
        self.chunks = 0
        self.recv_buffer[:] = self.recv_buffer.lstrip(b"\r\n")

    async def http1_request_header(self) -> None:  # test_rejects_ambiguous_headers
        """Refuse headers that a proxy may read differently, and so find another end of the body; Sanic accepts them."""
        await asyncio.sleep(0)  # for other connections, if this one pipelines: test_pipelining_connections_take_turns
        await super().http1_request_header()
        if NOT_A_HEADER.search(self.request.head.decode(errors="surrogateescape")):
            raise BadRequest("malformed header: an invalid character in its name, or an invalid blank before its value")

    @staticmethod
    def _safe_int(value: str, base: int = 10) -> int:  # test_rejects_ambiguous_chunk_size
        """Return a length; Sanic accepts what Python does: 0x5, digits of any script, blanks of any kind."""
        if not re.fullmatch(r"[0-9a-fA-F]+[ \t]*", value):
            raise ValueError
        return int(value, base)

    async def __aiter__(self) -> AsyncIterator[bytes]:  # test_drops_bodies_in_tiny_chunks
        """Read a body and let other connections proceed; Sanic does not while its buffer holds any of the body."""
        while self.request_body:
            if data := await self.read():
                yield data
            if self.chunks % CHUNKS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def read(self) -> bytes | None:  # test_drops_bodies_in_tiny_chunks, test_rejects_a_chunk_without_crlf
        """Refuse a body in tiny chunks, and a chunk without CRLF behind it; Sanic accepts any two bytes there."""
        if self.request_body == "chunked" and self.request_bytes_left == 0:  # at the end of a chunk, or of the head
            while len(self.recv_buffer) < 2:
                await self._receive_more()
            is_wasteful = self.chunks >= MANY_CHUNKS and (self.request_bytes or 0) < self.chunks * MIN_CHUNK_BYTES
            self.chunks += 1
            if is_wasteful or not self.recv_buffer.startswith(b"\r\n"):
                self.keep_alive = False
                raise BadRequest("the body has too many tiny chunks" if is_wasteful else "Bad chunked encoding")
        return await super().read()

    async def http1_response_header(self, data: bytes, end_stream: bool) -> None:
        """Refuse a request with Expect: 100-continue without inviting its body; Sanic sends 100 and the refusal."""
        if self.expecting_continue:  # test_refuses_expect_100_continue_without_the_body
            self.expecting_continue = self.keep_alive = False
        await super().http1_response_header(data, end_stream)

    def create_empty_request(self) -> None:  # test_clients_cannot_forge_log_lines
        """Respond to a URL that cannot be parsed; Sanic parses it again to respond to the error, and fails again."""
        self.url = None
        super().create_empty_request()


class DeadlineProtocol(HttpProtocol):  # test_drops_200_slow_connections
    """Has timeouts that run from a request's first byte, and from its response; in Sanic every byte restarts them."""

    HTTP_CLASS = StrictHttp
    __slots__ = ("at_eof",)  # set when the client has closed its side

    def eof_received(self) -> bool:  # test_responds_after_a_half_close
        """Respond to requests that are complete when the client closes its side; Sanic closes the connection."""
        self.at_eof = True
        request = getattr(self.http, "request", None)
        # Waiting in the queue, it counts as abandoned: a client that is gone looks the same.
        is_queued = request is not None and getattr(request.ctx, "is_queued", False)
        is_waiting = not self._data_received.is_set()  # for more of a request, or for the next one
        return not is_waiting and not is_queued

    async def receive_more(self) -> None:
        """Wait for more bytes; close the connection instead if there will be none, which cancels this."""
        if hasattr(self, "at_eof"):
            self.close()
            await asyncio.get_running_loop().create_future()
        await super().receive_more()

    def data_received(self, data: bytes) -> None:
        """Accept bytes without restarting the timeout of a request that is under way."""
        if self.under_way:
            started = self._time
            super().data_received(data)
            self._time = started
        elif data := data.lstrip(b"\r\n"):  # as in init_for_request
            super().data_received(data)

    def check_timeouts(self) -> None:
        """Keep checking after a 503 for a timeout; Sanic stops, and the rest of a body may trickle in forever."""
        scheduled = self._callback_check_timeouts
        super().check_timeouts()
        if self._task and self._callback_check_timeouts is scheduled:
            self._callback_check_timeouts = self.loop.call_later(1, self.check_timeouts)

    def close_if_idle(self) -> bool:  # test_sigterm_lets_a_refused_client_finish_sending
        """Close a connection without a request when the server stops; Sanic also closes one whose body is arriving."""
        return not self.under_way and super().close_if_idle()

    @property
    def under_way(self) -> bool:
        """Whether a request is arriving, even one that has its response already, or is being processed."""
        return self.http is not None and (self.http.stage is not Stage.IDLE or bool(self.http.request_body))
