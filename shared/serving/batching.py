"""Dynamic batching: calls of one model are gathered into micro-batches that run on the model's own thread.

The event loop puts calls into a bounded queue; the thread takes those that may run together (same key), oldest first,
runs them and returns the answers to the loop they came from. The work is a function from a list of items to a list of
answers, so nothing here depends on models or transports.

Calls of jobs are served after all others, until they have waited for `_JOB_PATIENCE_S`, and have a bound of their own:
jobs neither delay nor displace those who wait for an answer.

The delay is adaptive. While a batch runs, arrivals gather by themselves; only when the batch before had several calls,
and ended a moment ago, are its callers likely to come back soon, and the thread waits for them.
"""

import asyncio
import contextlib
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fovea.errors import Cancelled, DeadlineExceeded, FoveaError, NotReady, QueueFull
from shared import telemetry
from shared.registry import CallContext
from shared.serving.batch_context import BatchContext, BatchSpan
from shared.serving.http.errors import to_safe_error
from shared.serving.watched_work import WatchedWork

Item = TypeVar("Item")
Answer = TypeVar("Answer")

Work = Callable[[Hashable, Sequence[Item], CallContext], Sequence[Answer | FoveaError]]
"""Runs items that share a key: (key, items, run) → one answer or error per item, in order."""


_JOB_PATIENCE_S = 10.0  # how long a call of a job lets others pass


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How one model batches: largest batch in rows, longest delay in seconds, calls that may wait.

    More than one thread is for models that schedule for themselves and want concurrent calls.
    """

    size: int = 8
    wait: float = 0.002
    depth: int = 64
    threads: int = 1


@dataclass(eq=False, slots=True)
class _Call(Generic[Item]):
    """One caller's item on its way through the queue."""

    item: Item
    key: Hashable
    rows: int
    run: CallContext
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    request_id: str
    traceparent: str
    since: float = field(default_factory=time.perf_counter)
    queued: bool = True

    @property
    def is_job(self) -> bool:
        """Whether nobody waits for the answer on a connection."""
        return self.run.job is not None


class Batcher(Generic[Item, Answer]):
    """The queue and the thread of one model. `submit` may be called from any event loop."""

    def __init__(
        self,
        work: Work[Item, Answer],
        options: BatchOptions,
        *,
        service: str,
        model: str,
        watched: WatchedWork | None = None,
    ) -> None:
        self._work = work
        self._watched = watched or WatchedWork()
        self._options = options
        self._names = {"service": service, "model": model}
        self._queue: deque[_Call[Item]] = deque()
        self._ready = threading.Condition(threading.Lock())
        self._wake_at = 1  # the thread sleeps until this many calls wait
        self._last_count = 1  # calls that ran or waited when the last batch ended
        self._last_end = -math.inf
        self._mean_seconds = 0.0  # recent time of one batch
        self._running: dict[int, Sequence[_Call[Item]]] = {}  # by thread
        self._closed = False
        self._sizes = telemetry.BATCH_SIZE.labels(service, model)
        telemetry.QUEUE_DEPTH.labels(service, model).set_function(self._queue.__len__)
        self._threads = [
            threading.Thread(target=self._run_batches, name=f"{model} {n}", daemon=True) for n in range(options.threads)
        ]
        for thread in self._threads:
            thread.start()

    async def submit(self, item: Item, run: CallContext, *, key: Hashable = None, rows: int = 1) -> Answer:
        """Queue an item and wait for its answer.

        Args:
            item: Input of the work.
            run: The caller's deadline and cancellation; an item that ended before its turn is never run.
            key: Items run together only if their keys are equal.
            rows: How much of a batch the item takes; an item larger than a batch runs alone.

        Raises QueueFull: `retry_after` estimates when a place is free; DeadlineExceeded: also while the item ran;
        Cancelled: before its turn, or the work noticed; NotReady: the batcher is closed.
        """
        run.check()
        loop, ids = asyncio.get_running_loop(), telemetry.context()
        call = _Call(item, key, rows, run, loop, loop.create_future(), ids.request_id, ids.traceparent)
        self._put(call)
        alarm = None if run.deadline is None else loop.call_later(run.deadline - time.monotonic(), _expire, call)
        try:
            return await call.future  # type: ignore[no-any-return]  # the future carries what the work answered
        except asyncio.CancelledError:
            run.cancel()
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
            if call.queued:
                self._remove(call)

    @property
    def is_dead(self) -> bool:
        """Whether a thread has ended although it should go on."""
        return not self._closed and not all(thread.is_alive() for thread in self._threads)

    @property
    def busy(self) -> int:
        """Calls that wait or run."""
        with self._ready:
            return len(self._queue) + sum(map(len, self._running.values()))

    async def close(self, seconds: float = 0.0) -> None:
        """Refuse new calls, finish the waiting ones for up to `seconds`, then give up on the rest."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        await asyncio.to_thread(self._join, seconds)
        with self._ready:
            left, running = list(self._queue), [call for batch in self._running.values() for call in batch]
            self._queue.clear()
        stopping = NotReady("The service is stopping.", hint="Send the request again.", retry_after=1)
        _deliver((call, stopping) for call in left)
        for call in running:
            call.run.cancel()

    def _join(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))

    def _put(self, call: _Call[Item]) -> None:
        with self._ready:
            if self._closed or self.is_dead:
                raise NotReady("The model is being unloaded.", hint="Send the request again.", retry_after=1)
            waiting = sum(other.is_job == call.is_job for other in self._queue)
            if waiting >= self._options.depth:
                raise self._full(waiting)
            self._queue.insert(self._place(call), call)
            if len(self._queue) >= self._wake_at:
                self._ready.notify()

    def _place(self, call: _Call[Item]) -> int:
        """Where a new call stands in the queue: at the end, but before calls of jobs that can wait."""
        place = len(self._queue)
        if not call.is_job:
            patient_since = call.since - _JOB_PATIENCE_S
            while place and self._queue[place - 1].is_job and self._queue[place - 1].since > patient_since:
                place -= 1
        return place

    def _full(self, waiting: int) -> QueueFull:
        seconds = math.ceil(waiting / self._options.size) * self._mean_seconds
        detail = f"{waiting} requests wait for {self._names['model']}; the limit is {self._options.depth}."
        return QueueFull(detail, hint="Send it again later, or as a job.", retry_after=max(seconds, 0.1))

    def _remove(self, call: _Call[Item]) -> None:
        with self._ready, contextlib.suppress(ValueError):  # the thread may have taken it a moment ago
            self._queue.remove(call)

    def _run_batches(self) -> None:
        with telemetry.bind(**self._names):
            try:
                while batch := self._next_batch():
                    try:
                        self._run(batch)
                    except BaseException as error:  # noqa: BLE001  # a thread that ends leaves its callers waiting
                        self._give_up_on(batch, error)
            finally:
                self._fail_waiting()

    def _give_up_on(self, batch: Sequence[_Call[Item]], error: BaseException) -> None:
        """Answer the callers of a batch that ended in no way that models end."""
        failure = to_safe_error(RuntimeError(repr(error)), f"The model {self._names['model']}")
        telemetry.log().error("a batch broke off", reason=repr(error), **self._names)
        with self._ready:
            self._running.pop(threading.get_ident(), None)
        _deliver((call, failure) for call in batch)

    def _fail_waiting(self) -> None:
        """Answer who waits when the last thread ends: nobody else would."""
        with self._ready:
            others = any(thread.is_alive() for thread in self._threads if thread is not threading.current_thread())
            if others or not self._queue:
                return
            left = list(self._queue)
            self._queue.clear()
        _deliver((call, NotReady("The model's thread has ended.", hint="Send the request again.")) for call in left)

    def _next_batch(self) -> list[_Call[Item]]:
        """The next batch; empty when closed and done."""
        with self._ready:
            while True:
                while not self._queue:
                    if self._closed:
                        return []
                    self._ready.wait()
                self._wait_for_returning()
                if batch := self._select():
                    self._running[threading.get_ident()] = batch
                    return batch

    def _wait_for_returning(self) -> None:
        """Wait a moment for the callers of the last batch, if it had several and ended just now."""
        options, expected = self._options, min(self._last_count, self._options.size)
        until = time.perf_counter() + options.wait
        if len(self._queue) >= expected or until - self._last_end > 2 * options.wait:
            return
        self._wake_at = expected
        while len(self._queue) < expected and not self._closed and (left := until - time.perf_counter()) > 0:
            self._ready.wait(left)
        self._wake_at = 1

    def _select(self) -> list[_Call[Item]]:
        """Take the oldest live call and those after it that may run with it; drop ended ones on the way."""
        batch: list[_Call[Item]] = []
        remaining: deque[_Call[Item]] = deque()
        ended: list[tuple[_Call[Item], FoveaError]] = []
        rows = 0
        while self._queue:
            call = self._queue.popleft()
            if reason := _end_reason(call):
                ended.append((call, reason))
            elif batch and (call.key != batch[0].key or rows + call.rows > self._options.size):
                remaining.append(call)
                if call.key == batch[0].key:  # calls of one key never overtake each other
                    break
            else:
                batch.append(call)
                rows += call.rows
        self._queue.extendleft(reversed(remaining))
        for call in (*batch, *(call for call, _ in ended)):
            call.queued = False
        _deliver(ended)
        return batch

    def _run(self, batch: Sequence[_Call[Item]]) -> None:
        started, processor_time = time.perf_counter(), time.process_time()
        for call in batch:
            with telemetry.bind(traceparent=call.traceparent):
                telemetry.observe_queue_time(started - call.since)
        self._sizes.observe(len(batch))
        answers = self._attempt(batch)
        for call in batch:
            call.run.consume(cpu_seconds=(time.process_time() - processor_time) / len(batch))
        self._last_end = time.perf_counter()
        self._mean_seconds += 0.3 * (self._last_end - started - self._mean_seconds)
        self._last_count = len(batch) + len(self._queue)
        with self._ready:
            del self._running[threading.get_ident()]
        _deliver(zip(batch, answers, strict=True))

    def _attempt(self, batch: Sequence[_Call[Item]]) -> Sequence[Answer | FoveaError]:
        """Run a batch; when it fails as a whole, run its members alone, so that one bad call fails alone."""
        run = batch[0].run if len(batch) == 1 else BatchContext([call.run for call in batch])
        try:
            with (
                self._watched.watch(self._names["model"], run),
                telemetry.bind(request_id=",".join(call.request_id for call in batch)),
                BatchSpan([call.traceparent for call in batch], sum(call.rows for call in batch)),
            ):
                return self._answers(batch, run)
        except (Cancelled, DeadlineExceeded) as error:
            return [error] * len(batch)
        except Exception as error:  # noqa: BLE001  # a model may fail in any way; its thread must go on
            if len(batch) > 1:
                return [self._attempt([call])[0] for call in batch]
            with telemetry.bind(request_id=batch[0].request_id):
                return [to_safe_error(error, f"The model {self._names['model']}")]

    def _answers(self, batch: Sequence[_Call[Item]], run: CallContext) -> Sequence[Answer | FoveaError]:
        answers = self._work(batch[0].key, [call.item for call in batch], run)
        if len(answers) != len(batch):
            raise RuntimeError(f"the model answered {len(answers)} of {len(batch)} requests")
        return answers


def _end_reason(call: _Call[Any]) -> FoveaError | None:
    try:
        call.run.check()
    except FoveaError as error:
        return error
    return Cancelled("The caller has gone away.") if call.future.done() else None


def _expire(call: _Call[Any]) -> None:
    if not call.future.done():
        call.future.set_exception(call.run.build_late())


def _deliver(pairs: Iterable[tuple[_Call[Any], Any]]) -> None:
    """Return answers to the callers, with one call into each event loop."""
    loops: defaultdict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = defaultdict(list)
    for call, answer in pairs:
        loops[call.loop].append((call.future, answer))
    for loop, resolved in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(_resolve, resolved)


def _resolve(resolved: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, answer in resolved:
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
