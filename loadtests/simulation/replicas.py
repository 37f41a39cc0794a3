"""Replicas of the simulation: how long they take for what they get, and what they announce of themselves."""

import asyncio
import heapq
import itertools
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Protocol

from fovea.api.replica import ReplicaRecord
from loadtests.simulation.clock import SimulatedClock
from loadtests.simulation.redis import RedisClient
from loadtests.simulation.units import build_record
from shared.serving import heartbeat

BATCH_WAIT_S = 0.002
"""How long a batch waits for the callers of the one before: the default of `max_batch_delay_ms`."""


class ReplicaGone(Exception):
    """The replica's process is gone; `was_sent` is whether it had the request already."""

    def __init__(self, *, was_sent: bool) -> None:
        super().__init__("the replica is gone")
        self.was_sent = was_sent


@dataclass(frozen=True, slots=True)
class Work:
    """A request: its seconds where it runs alone, those where the replica has its key, and the key."""

    seconds: float
    seconds_held: float = 0.0
    key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """How long work takes together: `base + each * n` times the seconds that one request takes alone.

    `is_continuous` lets a request begin at any time; else requests run in batches, one after another.
    """

    base: float
    each: float
    most: int
    slots: int
    is_continuous: bool
    keys: int = 0


class Engine(Protocol):
    """Answers requests."""

    busy: int

    def begin(self, seconds: float, done: asyncio.Future[None]) -> None:
        """Take a request, whose future is resolved when it is answered."""


class BatchEngine:
    """Runs batches of what waits, one after another, as `shared.serving.batching` does."""

    def __init__(self, model: Model, loop: asyncio.AbstractEventLoop) -> None:
        self.busy, self.sizes = 0, [0, 0]
        self._model, self._loop = model, loop
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._is_running, self._last_end, self._expected = False, float("-inf"), 1
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, seconds: float, done: asyncio.Future[None]) -> None:
        self.busy += 1
        self._waiting.append((seconds, done))
        if not self._is_running:
            self._begin_or_wait()

    def _begin_or_wait(self) -> None:
        """Run what waits; a moment after a batch of several, its callers are waited for."""
        expected = min(self._expected, self._model.most)
        if self._timer is not None:
            if len(self._waiting) >= expected:
                self._timer.cancel()
                self._run()
        elif len(self._waiting) < expected and self._loop.time() - self._last_end <= BATCH_WAIT_S:
            self._timer = self._loop.call_later(BATCH_WAIT_S, self._run)
        else:
            self._run()

    def _run(self) -> None:
        self._timer, self._is_running = None, True
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._model.most))]
        self.sizes[0] += len(batch) ** 2
        self.sizes[1] += len(batch)
        seconds = max(each for each, _ in batch) * (self._model.base + self._model.each * len(batch))
        self._loop.call_later(seconds, self._end, batch)

    def _end(self, batch: list[tuple[float, asyncio.Future[None]]]) -> None:
        self._is_running, self._last_end = False, self._loop.time()
        self._expected = len(batch) + len(self._waiting)
        self.busy -= len(batch)
        for _, done in batch:
            if not done.done():
                done.set_result(None)
        if self._waiting:
            self._begin_or_wait()


class ContinuousEngine:
    """Shares its time between what is in it, as a text model that batches continuously; the rest waits."""

    def __init__(self, model: Model, loop: asyncio.AbstractEventLoop) -> None:
        self.busy = 0
        self._model, self._loop = model, loop
        self._progress, self._since = 0.0, loop.time()
        self._ends: list[tuple[float, int, asyncio.Future[None]]] = []
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._turns = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, seconds: float, done: asyncio.Future[None]) -> None:
        self.busy += 1
        self._advance()
        if len(self._ends) < self._model.most:
            heapq.heappush(self._ends, (self._progress + seconds, next(self._turns), done))
        else:
            self._waiting.append((seconds, done))
        self._set_timer()

    def _slowness(self) -> float:
        return self._model.base + self._model.each * len(self._ends)

    def _advance(self) -> None:
        now = self._loop.time()
        if self._ends:
            self._progress += (now - self._since) / self._slowness()
        self._since = now

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ends:
            left = max(self._ends[0][0] - self._progress, 0.0) * self._slowness()
            self._timer = self._loop.call_later(left, self._end)

    def _end(self) -> None:
        self._timer = None
        self._advance()
        while self._ends and self._ends[0][0] <= self._progress + 1e-9:
            done = heapq.heappop(self._ends)[2]
            self.busy -= 1
            if not done.done():
                done.set_result(None)
            if self._waiting:
                seconds, waiter = self._waiting.popleft()
                heapq.heappush(self._ends, (self._progress + seconds, next(self._turns), waiter))
        self._set_timer()


class SimulatedReplica:
    """One replica with its engine, its own heartbeat, and the keys of what it read last."""

    def __init__(self, number: int, service: str, model: Model, clock: SimulatedClock, client: RedisClient) -> None:
        self._number, self._service, self._clock = number, service, clock
        loop, self.model = asyncio.get_running_loop(), model
        self.engine: Engine = ContinuousEngine(model, loop) if model.is_continuous else BatchEngine(model, loop)
        self.id, self.is_gone, self.hits, self.misses = self.record().id, False, 0, 0
        self._held: OrderedDict[bytes, None] = OrderedDict()
        self._open: set[asyncio.Future[None]] = set()
        before, heartbeat.open_async_redis = heartbeat.open_async_redis, lambda *_, **__: client  # type: ignore[assignment]
        self._heartbeat = heartbeat.Heartbeat("redis://simulated", self.record)
        heartbeat.open_async_redis = before

    def record(self) -> ReplicaRecord:
        """What it announces."""
        return build_record(self._number, self._clock.now, self._service, self.model.slots)

    def start(self) -> None:
        """Announce itself from now on."""
        self._heartbeat.start()

    async def drain(self) -> None:
        """Withdraw the record, finish what it has, and go."""
        await self._heartbeat.withdraw()
        while self.engine.busy:  # noqa: ASYNC110  # as the real one looks, several times a second
            await asyncio.sleep(0.5)
        self.is_gone = True

    def kill(self) -> None:
        """`kill -9`: no more renewals, and connections break."""
        self.is_gone = True
        self._heartbeat._stopping.set()
        for done in self._open:
            done.set_exception(ReplicaGone(was_sent=True))
        self._open.clear()

    async def answer(self, work: Work) -> None:
        """Answer a request.

        Raises:
            ReplicaGone: It is gone, or goes meanwhile.
        """
        if self.is_gone:
            raise ReplicaGone(was_sent=False)
        done = asyncio.get_running_loop().create_future()
        self.engine.begin(self._look_up(work), done)
        self._open.add(done)
        try:
            await done
        finally:
            self._open.discard(done)

    def _look_up(self, work: Work) -> float:
        """The seconds of a request, by whether its key was read here before."""
        if work.key is None:
            return work.seconds
        is_held = work.key in self._held
        self.hits, self.misses = self.hits + is_held, self.misses + (not is_held)
        self._held[work.key] = None
        self._held.move_to_end(work.key)
        if len(self._held) > self.model.keys:
            self._held.popitem(last=False)
        return work.seconds_held if is_held else work.seconds
