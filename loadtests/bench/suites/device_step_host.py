"""Processor time of the host in one decode step on a device, with launches replaced by no-ops: no device is needed.

Tensors are torch's `meta` ones, which have no values: what is left is what Python and torch do between launches. A
recorded step is whole: its rows, its one copy, a replay that does nothing, and reading its tokens. The baseline is how
it was done: a slice of the pool for each row and layer, and a table of them in Python numbers.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from loadtests.bench.result import Row, Table, row
from loadtests.bench.turns import milliseconds, threads
from services.llm_longctx.engine.attention.decode import StepAttention
from services.llm_longctx.engine.attention.layer_inputs import LayerInputs
from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.attention.step_rows import StepRows
from services.llm_longctx.engine.device.graph_steps import GraphSteps, Outputs
from services.llm_longctx.engine.device.step_draws import StepDraws, read_choices
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.requests.sampling import Sampling
from services.llm_longctx.engine.sampler import Sampler
from services.llm_longctx.kv_cache import PagePool
from shared.lm.builders import llama
from shared.lm.decoder import Decoder
from shared.lm.host_transfer import DeviceBuffer

BATCH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, PROMPT = 32, 32, 32, 8, 128, 200
VOCAB = 512
METHODS = "dense", "duo"
ROLES = {"schema": "head-plan/1", "roles": [[1, 0] * (KV_HEADS // 2)] * LAYERS}
TARGET_MS = 2.0


def measure(rounds: int = 7, count: int = 20) -> Table:
    """Steps of a batch under several methods and caches."""
    with threads(1), _launching_nothing():
        calls: dict[str, Callable[[], Any]] = {name: Step(name).run for name in METHODS}
        calls |= {f"{name}, recorded": RecordedStep(name).run for name in METHODS}
        calls["a table of Python numbers per layer, alone"] = Step("dense").tables_of_numbers
        found = milliseconds(calls, rounds, count, time.process_time)
    base = float(np.median(found["a table of Python numbers per layer, alone"]))
    rows: list[Row] = [row(name, "ms / step", values, base) for name, values in found.items()]
    worst = max(float(np.median(found[f"{name}, recorded"])) for name in METHODS)
    return Table(
        suite="device_step_host",
        title="A decode step on a device: processor time of the host",
        how=f"batch {BATCH}, {LAYERS} layers, {KV_HEADS} key/value heads, one thread; attention of all layers, without "
        "linear layers, on tensors without values; recorded: all of a step, with half of the tokens drawn",
        baseline="a table of Python numbers per layer",
        rows=rows,
        targets={"slowest recorded step with drawing and reading tokens (ms)": (worst, TARGET_MS)},
    )


class Step:
    """Decode steps of a batch, everything around the kernels."""

    def __init__(self, method: str) -> None:
        with torch.device("meta"):
            self._model: Decoder = llama(
                vocab=64, width=HEADS * HEAD_DIM, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, hidden=64,
                positions=8192, head_dim=HEAD_DIM,
            )  # fmt: skip
        policy = Policy.of(self._model.config, method, ROLES if method == "duo" else None)
        pool = PagePool(1 << 22, 16, HEAD_DIM, torch.bfloat16, "meta")
        self._states = [PagedState(pool, policy) for _ in range(BATCH)]
        self._buffer, self._inputs = DeviceBuffer("meta"), LayerInputs(self._model, ())
        k = torch.empty(KV_HEADS, PROMPT, HEAD_DIM, dtype=torch.bfloat16, device="meta")
        for s in self._states:
            s.reserve(PROMPT, 4096)
            for layer in range(LAYERS):
                s.cache.append(layer, range(KV_HEADS), k, k)
            for layer, head in np.argwhere(~policy.full).tolist():  # as a cut leaves them, which reads what is held
                s.cache.cut[layer, head] = True
                s.cache.windows.set(layer, head, 4, PROMPT - 4, PROMPT)
            s.cache.length = PROMPT
        self._q = torch.empty(BATCH, 1, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="meta")
        self._k = torch.empty(BATCH, 1, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device="meta")

    def run(self) -> None:
        """One step."""
        seam = StepAttention(StepRows(self._states, [1] * BATCH), "triton", self._inputs)
        seam.rows.send(self._buffer)
        for layer in range(LAYERS):
            seam(layer, self._q, self._k, self._k, 0)
        for s in self._states:
            s.cache.end_step()

    def tables_of_numbers(self) -> None:
        """The earlier way of a step with its tables: slices, and their addresses, for each row of each layer."""
        pool = self._states[0].cache.pool
        starts = np.stack([s.cache.own.start for s in self._states], 1).reshape(LAYERS, -1)
        counts = np.stack([s.cache.own.n for s in self._states], 1).reshape(LAYERS, -1)
        for start, n in zip(starts, counts, strict=True):
            at = [slice(first, first + many) for first, many in zip(start.tolist(), n.tolist(), strict=True)]
            keys, values = ([store[one] for one in at] for store in (pool.keys, pool.values))
            for k, v in zip(keys, values, strict=True):
                _ = [k.storage_offset(), v.storage_offset(), 0, k.stride(0), v.stride(0), len(k), 0]


class RecordedStep(Step):
    """A recorded decode step from its rows to the tokens that answers accept: half of them likeliest, half drawn."""

    def __init__(self, method: str) -> None:
        super().__init__(method)
        self._samplers = [Sampler(Sampling(temperature=i % 2, seed=i), [], VOCAB) for i in range(BATCH)]
        pool = self._states[0].cache.pool
        self._graphs = GraphSteps(lambda _: _outputs(), pool, _Nothing(), "triton")

    def run(self) -> None:
        """One step."""
        draws = StepDraws([s.settings() for s in self._samplers], "triton")
        self._graphs.step(StepRows(self._states, [1] * BATCH, draws))
        chosen = [s.choose(draws.row(b)) for b, s in enumerate(self._samplers)]
        for sampler, words in zip(self._samplers, read_choices(chosen), strict=True):
            sampler.accept(words)
        for state in self._states:
            state.cache.end_step()


class _Nothing:
    """Records nothing, and replays it."""

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        outputs = run()
        return lambda: None, outputs


def _outputs() -> Outputs:
    return torch.empty(BATCH, VOCAB, device="meta"), torch.empty(BATCH, dtype=torch.float64, device="meta")


@contextlib.contextmanager
def _launching_nothing() -> Iterator[None]:
    """Kernels and copies into the cache return at once, and pinned memory is any memory."""

    def nothing(q: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return q, q.new_empty(q.shape[:2], dtype=torch.float32)

    def triton(*_: Any) -> str:
        return "triton"

    with (
        patch("services.llm_longctx.engine.attention.decode.choose", triton),
        patch("services.llm_longctx.engine.attention.decode.decode_device_runs", nothing),
        patch("services.llm_longctx.engine.attention.decode.decode_packed_device_runs", nothing),
        patch.object(Tensor, "index_copy_", lambda x, *_: x),
        patch.object(Tensor, "pin_memory", lambda x: x),
        patch("services.llm_longctx.engine.device.step_draws.to_host", lambda x: torch.zeros(x.shape, dtype=x.dtype)),
    ):
        yield
