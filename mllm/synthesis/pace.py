"""How fast requests may be sent: what the server allows a minute, and pauses that it asks for."""

import asyncio
import time
from collections.abc import Awaitable, Callable


class Pace:
    """Spaces requests evenly and makes up for tokens used beyond their rate. None: no limit."""

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._request_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token_s = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._next_request_s = self._next_token_s = self._pause_until_s = 0.0

    async def wait(self) -> None:
        """Returns when the next request may be sent."""
        now = self._clock()
        start = max(now, self._next_request_s, self._next_token_s, self._pause_until_s)
        self._next_request_s = start + self._request_s
        # A pause may be asked for while this one waits.
        while (delay := max(start, self._pause_until_s) - self._clock()) > 0:
            await self._sleep(delay)

    def used(self, tokens: int) -> None:
        """Tokens that a request and its answer had."""
        self._next_token_s = max(self._clock(), self._next_token_s) + tokens * self._token_s

    def pause(self, seconds: float) -> None:
        """No request is sent for so long: the server said it is too busy."""
        self._pause_until_s = max(self._pause_until_s, self._clock() + seconds)
