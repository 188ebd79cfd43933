"""Requests that arrive at about the same time go through the network together."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from headstart.errors import HeadstartError


class Busy(HeadstartError, RuntimeError):
    """As many requests wait as may; try again later."""


class Batcher:
    """Collects items for at most some milliseconds, and runs them as one batch.

    One batch runs at a time, in a thread of its own.

    Args:
        run: A function of a list of items that returns as many results; an exception in place of a
            result is raised to that item's caller.
        size: Items of a batch, at most.
        wait: Seconds that the first item of a batch waits for others.
        queue: Items that wait or run, at most.
    """

    def __init__(
        self, run: Callable[[list[Any]], Sequence[Any]], *, size: int, wait: float, queue: int
    ) -> None:
        self.run, self.size, self.wait, self.queue = run, size, wait, queue
        self.waiting = 0
        self._items: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue()
        self._pool = ThreadPoolExecutor(1, "headstart-network")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to serve; needs a running event loop."""
        self._task = asyncio.create_task(self._serve())

    async def stop(self) -> None:
        """Ends after the batch that runs now; items that still wait get `Busy`."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        while not self._items.empty():
            _, future = self._items.get_nowait()
            if not future.done():
                future.set_exception(Busy("the server is shutting down"))
        self._pool.shutdown(wait=True)

    async def submit(self, items: Sequence[Any]) -> list[Any]:
        """The results of some items, in order.

        Raises:
            Busy: More items would wait than may.
        """
        if self.waiting + len(items) > self.queue:
            raise Busy(f"{self.waiting} items wait already; at most {self.queue} may")
        self.waiting += len(items)
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in items]
        try:
            for pair in zip(items, futures, strict=True):
                self._items.put_nowait(pair)
            return list(await asyncio.gather(*futures))
        finally:
            self.waiting -= len(items)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        found: Any
        while True:
            batch = await self._collect()
            if not batch:
                continue
            running = loop.run_in_executor(self._pool, self.run, [item for item, _ in batch])
            try:
                # an error of one batch goes to its callers and does not end the server
                (found,) = await asyncio.gather(asyncio.shield(running), return_exceptions=True)
            except asyncio.CancelledError:
                deliver(batch, await running)
                raise
            deliver(batch, [found] * len(batch) if isinstance(found, BaseException) else found)

    async def _collect(self) -> list[tuple[Any, asyncio.Future[Any]]]:
        """The items of the next batch, without those whose caller has gone."""
        batch = [await self._items.get()]
        end = asyncio.get_running_loop().time() + self.wait
        while len(batch) < self.size:
            left = end - asyncio.get_running_loop().time()
            if left <= 0 and self._items.empty():
                break
            try:
                batch.append(await asyncio.wait_for(self._items.get(), max(left, 0.0)))
            except TimeoutError:
                break
        return [(item, future) for item, future in batch if not future.done()]


def deliver(batch: Sequence[tuple[Any, asyncio.Future[Any]]], results: Sequence[Any]) -> None:
    """Gives each caller its result or its error."""
    for (_, future), result in zip(batch, results, strict=True):
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
