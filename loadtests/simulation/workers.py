"""Workers of jobs, scaled by KEDA: Prometheus scrapes the number of jobs, KEDA asks it, and Kubernetes starts pods.

KEDA and the HorizontalPodAutoscaler are written here by their documentation, with the chart's numbers; the requests
of jobs go through the simulated gateways.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable

SCRAPE_S, POLL_S, COOLDOWN_S = 15.0, 30.0, 120.0
"""How often Prometheus scrapes and KEDA asks, and how long nothing is wanted before the last worker goes."""

STABLE_S = 300.0
"""How long fewer workers must be wanted before some go: the default of Kubernetes."""

POD_START_S = 8.0
"""Assumed: a pod of an image that the node holds."""


class Workers:
    """Workers that take jobs from a queue, `at_once` each, as many as KEDA wants."""

    def __init__(self, run_job: Callable[[], Awaitable[object]], per_worker: int, most: int, at_once: int) -> None:
        self.waits: list[float] = []
        """Seconds from each job's arrival until a worker took it."""

        self.pod_seconds = 0.0
        self._run_job, self._per_worker, self._most, self._at_once = run_job, per_worker, most, at_once
        self._queue: deque[float] = deque()
        self._running = self._workers = self._starting = 0
        self._scraped = 0
        self._loop = asyncio.get_running_loop()

    def submit(self) -> None:
        """Queue a job."""
        self._queue.append(self._loop.time())
        self._take()

    async def scale(self) -> None:
        """Scrape, ask and scale for ever."""
        wanted: deque[tuple[float, int]] = deque()
        last_used = next_poll = self._loop.time()
        while True:
            await asyncio.sleep(SCRAPE_S)
            self.pod_seconds += SCRAPE_S * self._workers
            now = self._loop.time()
            if now >= next_poll:
                next_poll += POLL_S
                jobs = self._scraped
                last_used = now if jobs else last_used
                wanted.append((now, min(math.ceil(jobs / self._per_worker), self._most)))
                while wanted[0][0] < now - STABLE_S:
                    wanted.popleft()
                self._apply(max(count for _, count in wanted), wanted[-1][1], idle_s=now - last_used)
            self._scraped = len(self._queue) + self._running

    def _apply(self, stable: int, newest: int, idle_s: float) -> None:
        """More workers at once, fewer only when that lasted; none after the cool-down."""
        have = self._workers + self._starting
        if newest > have:
            for _ in range(newest - have):
                self._starting += 1
                self._loop.call_later(POD_START_S, self._add_worker)
        elif idle_s >= COOLDOWN_S:
            self._workers = 0
        elif stable < self._workers:
            self._workers = max(stable, 1)

    def _add_worker(self) -> None:
        self._starting -= 1
        self._workers += 1
        self._take()

    def _take(self) -> None:
        while self._queue and self._running < self._workers * self._at_once:
            self._running += 1
            self.waits.append(self._loop.time() - self._queue.popleft())
            task = self._loop.create_task(self._work())
            _TASKS.add(task)
            task.add_done_callback(_TASKS.discard)

    async def _work(self) -> None:
        try:
            await self._run_job()
        finally:
            self._running -= 1
            self._take()


_TASKS: set[asyncio.Task[None]] = set()
