"""The metrics port: as much HTTP as a scraper needs, on the event loop.

- GET and HEAD of /metrics; other requests get an error. Each answer closes the connection.
- A client can take little: `ScrapeSettings` limits the bytes and the time of a request, the time of the
  answer, and the number of clients. One client more closes the oldest, so that idle clients keep none
  out. All clients share one page, written in pieces, so a slow client holds one piece.
- The port only reads; anyone who reaches it can read.

Not h11: it would replace the 8 lines that split the request line and write the head of the answer by about as
many that drive its connection object. It has none of the limits above, which are the rest of this
module, and the node would have one more dependency.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from connmon.config import Address

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScrapeSettings:
    """Limits of the metrics port."""

    request_bytes: int = 8192
    request_seconds: float = 5.0
    answer_seconds: float = 15.0
    clients: int = 32
    piece_bytes: int = 256 * 1024
    """Written before the client has to take some of it."""


_PAGE: Final = "text/plain; version=0.0.4; charset=utf-8"
_TEXT: Final = "text/plain; charset=utf-8"


class ScrapePort:
    """Serves what `page` returns. `start` and `close` are called on one running event loop."""

    def __init__(
        self,
        address: Address,
        page: Callable[[], Awaitable[bytes]],
        settings: ScrapeSettings = ScrapeSettings(),
    ) -> None:
        self._address = address
        self._page = page
        self._settings = settings
        self._listener: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}
        """One per client, the oldest first."""

    def __repr__(self) -> str:
        return f"<ScrapePort {self._address}: {len(self._tasks)} clients>"

    async def start(self) -> None:
        """Listen. Raises OSError if the port cannot be opened."""
        self._listener = await asyncio.start_server(
            self._accepted,
            self._address.host,
            self._address.port,
            limit=self._settings.request_bytes,
            reuse_address=True,
        )

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._listener is not None:
            self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= self._settings.clients:
            oldest = next(iter(self._tasks))
            del self._tasks[oldest]
            oldest.cancel()
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        settings = self._settings
        try:
            try:
                request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), settings.request_seconds)
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                request = b""
            await asyncio.wait_for(self._answer(request, writer), settings.answer_seconds)
        except (OSError, asyncio.TimeoutError):
            pass  # the client has gone, or is too slow
        except Exception:
            logger.exception("a scrape could not be answered")
        finally:
            writer.transport.abort()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        method, _, rest = request.partition(b" ")
        path, _, version = rest.partition(b"\r\n")[0].rpartition(b" ")
        status, content_type = HTTPStatus.OK, _TEXT
        if not version.startswith(b"HTTP/1."):
            status, body = HTTPStatus.BAD_REQUEST, b"expected GET /metrics HTTP/1.1\n"
        elif method not in (b"GET", b"HEAD"):
            status, body = HTTPStatus.METHOD_NOT_ALLOWED, b"expected GET\n"
        elif path.partition(b"?")[0] != b"/metrics":
            status, body = HTTPStatus.NOT_FOUND, b"metrics are at /metrics\n"
        else:
            try:
                content_type, body = _PAGE, await self._page()
            except Exception:
                logger.exception("the page of metrics could not be made")
                status, content_type = HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT
                body = b"see the node's log\n"
        writer.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        )
        if method != b"HEAD":
            view = memoryview(body)
            for at in range(0, len(body), self._settings.piece_bytes):
                writer.write(view[at : at + self._settings.piece_bytes])
                await writer.drain()
        writer.write_eof()
        # Closing while received bytes are unread would drop the answer: let it go first.
        with contextlib.suppress(OSError):
            await writer.drain()
            while writer.transport.get_write_buffer_size():
                await asyncio.sleep(0.01)
