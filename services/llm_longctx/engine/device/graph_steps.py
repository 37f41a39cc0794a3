"""Graph steps: decode steps that are recorded once per shape and replayed, so that Python launches nothing in between.

Batches are filled up to a few sizes. A shape's first step runs as it is, which compiles its kernels; its second is
recorded. A step that can't be recorded runs unrecorded from then on. Knows shapes and recordings; knows neither a model
nor how a device records.
"""

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from services.llm_longctx.engine.attention.step_rows import StepRows
from services.llm_longctx.engine.device.fixed_step import FixedStep, StepShape
from services.llm_longctx.kernels.device.launch import counters
from services.llm_longctx.kernels.dispatch import choose
from services.llm_longctx.kv_cache import PagePool, PoolExhausted
from shared import telemetry

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Sizes of batches; larger ones are not recorded."""

MOST_GRAPHS = 64
"""Recordings that are held; the one that was used longest ago goes."""

_ONE_AT_A_TIME = threading.Lock()
"""Held by the model that records."""

Outputs = tuple[Tensor, Tensor]
"""Logits [B,V] and tokens float64 [B] of a step."""


class GraphRecorder(Protocol):
    """Records what a function launches."""

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """Record a function: what replays it, and its outputs, which each replay overwrites.

        Raises RuntimeError: it does something that can't be recorded.
        """
        ...


class CudaRecorder:
    """CUDA graphs, which share one pool of memory and one stream: only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._pool: Any = None
        cuda: Any = torch.cuda  # torch leaves its streams without annotations
        self._stream = cuda.Stream(device)
        with cuda.stream(self._stream):
            counters(device, 1)  # kernels' counters must be zero before the first graph, whichever that is

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """Record a function: what replays it, and its outputs; see `GraphRecorder`."""
        cuda: Any = torch.cuda
        graph = cuda.CUDAGraph()
        # Other threads may use the device meanwhile, but none may record: it begins by waiting for the whole device.
        # Where a capture ends in an error torch leaves its stream the thread's, so it is set around it, too.
        how = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        with _ONE_AT_A_TIME, cuda.stream(self._stream), cuda.graph(graph, **how):
            outputs = run()
        self._pool = self._pool or graph.pool()
        return graph.replay, outputs


class _Recording:
    """One shape: its buffer, and its graph once there is one."""

    def __init__(self, step: FixedStep) -> None:
        self.step = step
        self.has_run = False
        self.can_record = True
        self.replay: Callable[[], None] | None = None
        self.outputs: Outputs | None = None


class GraphSteps:
    """Decode steps of one model and pool.

    Attributes:
        batches: Sizes that batches are filled up to, in rising order.
    """

    def __init__(
        self,
        run: Callable[[FixedStep], Outputs],
        pool: PagePool,
        recorder: GraphRecorder,
        backend: str,
        batches: Sequence[int] = BATCHES,
        most: int = MOST_GRAPHS,
    ) -> None:
        """Record nothing yet.

        Args:
            run: Runs a step over a buffer: all of its launches, none of its transfers.
            pool: Where entries lie.
            recorder: Records it.
            backend: Of the kernels.
            batches: Sizes of batches, in rising order.
            most: Recordings to hold.
        """
        self.batches = batches
        self._run, self._pool, self._recorder, self._backend, self._most = run, pool, recorder, backend, most
        self._held: OrderedDict[StepShape, _Recording] = OrderedDict()
        self._spare: int | None = None

    def __len__(self) -> int:
        """Shapes that are recorded."""
        return sum(one.replay is not None for one in self._held.values())

    def step(self, rows: StepRows, unrecorded: Callable[[FixedStep], Outputs] | None = None) -> Tensor | None:
        """Run a step: logits [B,V] until the next one; None where no recording can have its shape.

        `unrecorded` runs in the place of a recording, on its buffer, so that rows are as many.
        """
        batch, draws = len(rows.tokens), rows.draws
        at = bisect_left(self.batches, batch)
        if at == len(self.batches) or (spare := self._spare_entry()) is None:
            return None
        one = self._recording(StepShape.of(rows, self.batches[at]), spare)
        one.step.write(rows)
        logits, drawn = self._outputs(one) if unrecorded is None else unrecorded(one.step)
        if draws is None:
            return logits[:batch].clone()  # its reader may keep it
        draws.rows.take(one.step.settings.on(logits.device)[:, :batch])
        draws.adopt(logits[:batch], drawn)
        return logits[:batch]

    def _outputs(self, one: _Recording) -> Outputs:
        if one.has_run and one.can_record and one.replay is None:
            self._record(one)
        one.has_run = True
        if one.replay is None or one.outputs is None:
            return self._run(one.step)
        one.replay()
        telemetry.kernel_called("decode_step", "triton", "a recorded graph")
        return one.outputs

    def _record(self, one: _Recording) -> None:
        try:
            one.replay, one.outputs = self._recorder.record(lambda: self._run(one.step))
        except RuntimeError as error:
            one.can_record = False
            telemetry.log().warning("a decode step can't be recorded as a graph", exc_info=error)

    def _recording(self, shape: StepShape, spare: int) -> _Recording:
        if shape not in self._held:
            self._held[shape] = _Recording(FixedStep(shape, self._pool, spare, self._backend))
            if len(self._held) > self._most:
                self._held.popitem(last=False)
        self._held.move_to_end(shape)
        return self._held[shape]

    def _spare_entry(self) -> int | None:
        """An entry that empty rows write to; None while no page is free for it."""
        if self._spare is None and self._pool.free:
            try:
                page = self._pool.reserve(1)
            except PoolExhausted:
                return None
            self._pool.commit(np.array([page]))
            self._spare = page * self._pool.page
        return self._spare


def open_graphs(run: Callable[[FixedStep], Outputs], pool: PagePool, backend: str) -> GraphSteps | None:
    """Recorded steps, where a device can record and Triton decodes; see `GraphSteps`."""
    kind = pool.device.type
    if kind != "cuda" or not torch.cuda.is_available() or choose("decode", backend, pool.keys.dtype, kind) != "triton":
        return None
    return GraphSteps(run, pool, CudaRecorder(pool.device), backend)
