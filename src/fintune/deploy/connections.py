"""Whose connections are closed where there are too many."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """A connection for which, where there would be too many, the one that was silent longest is closed.

    Not one that waits for its answer. By itself uvicorn refuses everybody with 503 for as long as one client keeps
    that many open, also where it sends nothing, half a request, or does not read.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._heard = self.loop.time()
        if len(self.connections) >= self.limit_concurrency:
            silent = [other for other in self.connections if other is not self and not other._waits_for_answer()]
            if silent:
                longest = min(silent, key=lambda other: other._heard)
                self.connections.discard(longest)
                longest.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        super().data_received(data)

    def _waits_for_answer(self) -> bool:
        """Whether its request is whole, and it has not stopped reading what is answered."""
        return self.conn.their_state not in (h11.IDLE, h11.SEND_BODY) and not self.flow.write_paused
