"""What Sanic's HTTP does not do: without each part a slow client was never dropped, or a body was kept in memory."""

import re

from sanic.exceptions import BadRequest, BadURL
from sanic.http import Http, Stage
from sanic.server.protocols.http_protocol import HttpProtocol

# A line that is no header of HTTP: its name is no token, or its value begins with a blank that only Python knows.
NO_HEADER = re.compile(r"\r\n(?![!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t]*(?=\S|\r\n|\Z))")


class AnsweringHttp(Http):
    """Reads what Sanic would take for another request, and answers what Sanic would leave without an answer or end."""

    # There are no WebSockets here, and Sanic sets no time-out for a request that only says it wants one.
    upgrade_websocket = property(lambda self: False, lambda self, value: None)

    def init_for_request(self) -> None:
        """Begin with a request, past the empty line that some clients send after a body: RFC 9112, 2.2."""
        super().init_for_request()
        del self.recv_buffer[: len(self.recv_buffer) - len(self.recv_buffer.lstrip(b"\r\n"))]

    async def http1_request_header(self) -> None:
        """Read a request's head. Where a proxy may read another header, it may find another end of the body."""
        await super().http1_request_header()
        if NO_HEADER.search(self.request.head.decode(errors="surrogateescape")):
            raise BadRequest("a header is not one: its name has an odd character, or its value an odd blank")

    async def http1_response_header(self, data: bytes, end_stream: bool) -> None:
        """Answer. Who asked whether to send a body, and is refused, gets that alone: Sanic says to send it first."""
        if self.expecting_continue:
            self.expecting_continue = self.keep_alive = False
        await super().http1_response_header(data, end_stream)

    @staticmethod
    def _safe_int(value: str, base: int = 10) -> int:
        """Return a length. Sanic takes what Python does: 0x5, digits of any script, blanks of any kind."""
        value = value.rstrip(" \t")
        if not re.fullmatch(r"[0-9a-fA-F]+", value):
            raise ValueError
        return int(value, base)

    def create_empty_request(self) -> None:
        """Make the request that an error is answered to; Sanic fails once more over a URL that cannot be read."""
        try:
            super().create_empty_request()
        except BadURL:
            self.url = None
            super().create_empty_request()


class DeadlineProtocol(HttpProtocol):
    """Has time-outs that a trickle of bytes does not put off, as with Sanic every byte does.

    They run from the first byte of a request, and, once it is answered, from the answer.
    """

    HTTP_CLASS = AnsweringHttp

    def data_received(self, data: bytes) -> None:
        """Take in what the client has sent."""
        if self.under_way:
            started = self._time
            super().data_received(data)
            self._time = started
        elif data := data.lstrip(b"\r\n"):  # as in init_for_request
            super().data_received(data)

    def check_timeouts(self) -> None:
        """End what takes too long. Sanic looks no more once it has answered 503, though a body may trickle on."""
        scheduled = self._callback_check_timeouts
        super().check_timeouts()
        if self._task and self._callback_check_timeouts is scheduled:
            self._callback_check_timeouts = self.loop.call_later(1, self.check_timeouts)

    def close_if_idle(self) -> bool:
        """Close a connection without a request, when the server ends. To Sanic one is over that has been answered."""
        return not self.under_way and super().close_if_idle()

    @property
    def under_way(self) -> bool:
        """Whether a request is arriving, even if it has been answered, or is being worked on."""
        return self.http is not None and (self.http.stage is not Stage.IDLE or bool(self.http.request_body))
