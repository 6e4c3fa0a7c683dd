"""The port of the metrics: as much of HTTP as a scraper needs, on the event loop.

- GET and HEAD of /metrics; anything else is answered with what is there, and the connection closed.
- Nothing that a client does takes long or much: a request has `HEAD_BYTES` and `HEAD_SECONDS`, its
  answer `ANSWER_SECONDS`, and there are `CLIENTS` at a time: for one more the oldest goes, so that
  clients which only stay keep nobody out. A page is shared by all who ask for it and written in
  pieces, so a slow client holds one of those.
- Whoever reaches the port can read, and only read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from connmon.config import Address

logger = logging.getLogger(__name__)

HEAD_BYTES: Final = 8192
HEAD_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 15.0
CLIENTS: Final = 32
#: Bytes that are written before the client has to take some of them.
PIECE: Final = 256 * 1024

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_REASONS: Final = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


class ScrapePort:
    """Serves what `page` returns. `start` and `close` are called on one running event loop."""

    def __init__(self, address: Address, page: Callable[[], Awaitable[bytes]]) -> None:
        self._address = address
        self._page = page
        self._listener: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}
        """The oldest first."""

    @property
    def port(self) -> int:
        assert self._listener is not None
        return int(self._listener.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen. Raises OSError where that cannot be."""
        self._listener = await asyncio.start_server(
            self._accepted, self._address.host, self._address.port, limit=HEAD_BYTES, reuse_address=True
        )

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._listener is not None:
            self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= CLIENTS:
            oldest = next(iter(self._tasks))
            del self._tasks[oldest]
            oldest.cancel()
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            try:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_SECONDS)
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                head = b""
            await asyncio.wait_for(self._answer(head, writer), ANSWER_SECONDS)
        except (OSError, asyncio.TimeoutError):
            pass  # it went, or was too slow
        except Exception:
            logger.exception("a scrape could not be answered")
        finally:
            writer.transport.abort()

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        method, _, rest = head.partition(b" ")
        path, _, version = rest.partition(b"\r\n")[0].rpartition(b" ")
        kind, code, body = "text/plain; charset=utf-8", 200, b""
        if not version.startswith(b"HTTP/1."):
            code, body = 400, b"expected GET /metrics HTTP/1.1\n"
        elif method not in (b"GET", b"HEAD"):
            code, body = 405, b"expected GET\n"
        elif path.partition(b"?")[0] != b"/metrics":
            code, body = 404, b"metrics are at /metrics\n"
        else:
            kind = _TEXT
            try:
                body = await self._page()
            except Exception:
                logger.exception("the page of metrics could not be made")
                kind, code, body = "text/plain; charset=utf-8", 500, b"see the node's log\n"
        writer.write(
            f"HTTP/1.1 {code} {_REASONS[code]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        if method != b"HEAD":
            view = memoryview(body)
            for at in range(0, len(body), PIECE):
                writer.write(view[at : at + PIECE])
                await writer.drain()
        writer.write_eof()
        # Closing upon unread bytes would take the answer from the client: it has to go first.
        with contextlib.suppress(OSError):
            await writer.drain()
            await _ended(writer)


async def _ended(writer: asyncio.StreamWriter) -> None:
    """Return when what was written has gone to the system."""
    while writer.transport.get_write_buffer_size():
        await asyncio.sleep(0.01)
