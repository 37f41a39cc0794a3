"""Neural memory of Titans as a module: projections and gates around fast weights, and the state between calls.

Two kernels. `paper` follows the paper's equations token by token; `library` computes what the public reference library
computes, for conformance. Both are one algorithm: steps of `chunk` tokens, whose gradients are taken at the weights
with which the current refresh window began. Any cut of a stream gives the outputs and the state of one call.

Axes: B, T, D width, H heads, d head width. Knows nothing about attention, layouts or storage.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_memory.mixers.titans.fast_weights import FastWeights, gradients, linear_window, read, recur
from shared.registry import builder

Kernel = Literal["paper", "library"]

CONV_WIDTH = 4
"""Width of the causal convolution behind the paper's projections."""

DEFAULT_REFRESH = 16
"""Tokens of a refresh window of the paper's kernel, unless told otherwise."""

_CAP, _FLOOR = math.log(0.99), math.log(1 - 0.001)
"""With clamped gradients, momentum keeps at most 99 % and at least 0.1 % is forgotten: nothing can grow for ever."""


@dataclass(frozen=True, slots=True)
class MemoryState:
    """State of a memory between calls.

    Attributes:
        index: Tokens read.
        weights: Fast weights in parameter order, each [B·H,...].
        momentum: Likewise.
        base: The weights with which the current refresh window began.
        rest: Tokens of a chunk that is not complete [B,r,D].
        tails: Last inputs of the convolutions of q, k and v, each [B,H·d,3]; none for the library's kernel.
    """

    index: int
    weights: FastWeights
    momentum: FastWeights
    base: FastWeights
    rest: Tensor
    tails: list[Tensor] = field(default_factory=list)


class MemoryTrace(NamedTuple):
    """Trace of stored tokens: error before its rate, rate, and what was forgotten, each [B,H,T'] over stored tokens."""

    loss: Tensor
    rate: Tensor
    forgotten: Tensor


@builder("titans-memory")
class TitansMemory(nn.Module):
    """A memory that is written and read token by token.

    Args:
        kernel: `paper` or `library`.
        width: D.
        heads, head_dim: H and d; d is D / H unless given.
        depth, expansion: Matrices of the MLP, and its hidden width over d.
        chunk: Tokens of one step; 1 in the paper's kernel.
        refresh: Tokens after which gradients are taken at newer weights; None never does (library) or is 16 (paper).
        momentum: Whether there is momentum.
        residual_norm, input_norm, qk_norm: The library's options; the paper's kernel has none of them.
        max_rate: Largest theta.
        clamp: See `fast_weights.gradients`; None computes exactly what is published.
    """

    def __init__(
        self,
        kernel: Kernel = "paper",
        *,
        width: int,
        heads: int = 1,
        head_dim: int | None = None,
        depth: int = 2,
        expansion: float = 2.0,
        chunk: int = 1,
        refresh: int | None = None,
        momentum: bool = True,
        residual_norm: bool = True,
        input_norm: bool = True,
        qk_norm: bool = False,
        max_rate: float = 1.0,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        paper = kernel == "paper"
        if paper:
            residual_norm = input_norm = qk_norm = False
            chunk, refresh = 1, DEFAULT_REFRESH if refresh is None else refresh
        if refresh is not None and (refresh < 1 or refresh % chunk):
            raise ValueError(f"refresh must be a multiple of chunk {chunk}, not {refresh}")
        self.paper, self.heads, self.head_dim = paper, heads, head_dim or width // heads
        self.chunk, self.refresh, self.momentum = chunk, refresh, momentum
        self.wrapped, self.max_rate, self.clamp = residual_norm, max_rate, clamp
        self._build(width, depth, expansion, input_norm, qk_norm)

    def forward(
        self, x: Tensor, state: MemoryState | None = None, *, trace: bool = False
    ) -> tuple[Tensor, MemoryState] | tuple[Tensor, MemoryState, MemoryTrace]:
        """Read and write x [B,T,D]; the given state is left as it is.

        Returns:
            The memory's output for each token [B,T,D], the new state, and with `trace` what was stored.
        """
        out, after, traced = self.forward_with_trace(x, state or self.initial_state(x.shape[0]))
        return (out, after, traced) if trace else (out, after)

    def forward_with_trace(self, x: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState, MemoryTrace]:
        """As `forward`, always with the trace."""
        q, tails = self._queries(x, state.tails)
        stored, rest = self._steps(torch.cat((state.rest, x), 1))
        k, v, more = self._pairs(stored, state.tails)
        gates = self._gates(stored)
        y, after, losses = self._run_windows(q, k, v, gates, state)
        after = replace(after, index=state.index + x.shape[1], rest=rest, tails=[*tails, *more])
        forgotten = (1 - gates.log_keep.exp()).repeat_interleave(self.chunk, -1)
        return self._merge_heads(y, x), after, MemoryTrace(losses, gates.rate, forgotten)

    def initial_state(self, batch: int) -> MemoryState:
        """The state before the first token."""
        weights = [w.repeat(batch, *[1] * (w.dim() - 1)) for w in self.memory_model_parameters]
        like = self.to_queries.weight
        empty = like.new_zeros(batch, 0, like.shape[1])
        tails = [like.new_zeros(batch, like.shape[0], CONV_WIDTH - 1) for _ in range(3 if self.paper else 0)]
        return MemoryState(0, weights, [torch.zeros_like(w) for w in weights], weights, empty, tails)

    def recall(self, x: Tensor, weights: FastWeights) -> Tensor:
        """Ask a memory without writing to it and without the convolution [B,T,D]: one set of weights for all tokens."""
        q = self._split_heads(self.to_queries(x))
        if self.paper:
            q = functional.normalize(functional.silu(q), dim=-1)
        return self._merge_heads(read(weights, q.flatten(0, 1), wrapped=self.wrapped).view(q.shape), x)

    def _build(self, width: int, depth: int, expansion: float, input_norm: bool, qk_norm: bool) -> None:
        H, d = self.heads, self.head_dim
        if input_norm:
            self.retrieve_norm, self.store_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        if qk_norm:
            self.q_norm, self.k_norm = _HeadNorm(H, d), _HeadNorm(H, d)
        sides = [d, *[int(expansion * d)] * (depth - 1), d]
        matrices = [torch.randn(H, a, b, device="cpu") * a**-0.5 for a, b in itertools.pairwise(sides)]
        fast = [torch.zeros(H, d, device="cpu"), *matrices] if self.wrapped else matrices
        self.memory_model_parameters = nn.ParameterList(nn.Parameter(w) for w in fast)
        self.to_queries = nn.Linear(width, H * d, bias=False)
        self.to_keys = nn.Linear(width, H * d, bias=False)
        self.to_values = nn.Linear(width, H * d, bias=False)
        self.to_adaptive_step = nn.Sequential(nn.Linear(width, H))
        if self.momentum:
            self.to_momentum = nn.Sequential(nn.Linear(width, H))
        self.to_decay_factor = nn.Sequential(nn.Linear(width, H))
        if H > 1:
            if not self.paper:
                self.retrieve_gate = nn.Sequential(nn.Linear(width, H, bias=False))
            self.combine_heads = nn.Linear(H * d, width, bias=False)
        if self.paper:
            convolutions = (nn.Conv1d(H * d, H * d, CONV_WIDTH, groups=H * d, bias=False) for _ in range(3))
            self.conv_queries, self.conv_keys, self.conv_values = convolutions
            self._start_gates()

    def _start_gates(self) -> None:
        """Forget 1 % per token at first: with a bias of 0, half of the memory would go at every token."""
        gates = [(self.to_adaptive_step, 0.0), (self.to_decay_factor, -4.6)]
        for gate, bias in [*gates, (self.to_momentum, 0.0)] if self.momentum else gates:
            nn.init.constant_(cast("nn.Linear", gate[0]).bias, bias)

    def _split_heads(self, x: Tensor) -> Tensor:
        """[B,T,H·d] → [B,H,T,d]."""
        return x.view(*x.shape[:2], self.heads, self.head_dim).transpose(1, 2)

    def _queries(self, x: Tensor, tails: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Queries of each token [B,H,T,d]."""
        if self.paper:
            z, tail = _convolve(self.conv_queries, functional.silu(self.to_queries(x)), tails[0])
            return functional.normalize(self._split_heads(z), dim=-1), [tail]
        q = self._split_heads(self.to_queries(self.retrieve_norm(x) if hasattr(self, "retrieve_norm") else x))
        return (self.q_norm(q) if hasattr(self, "q_norm") else q), []

    def _pairs(self, x: Tensor, tails: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Keys and values that each stored token writes: [B,H,T',d]."""
        if self.paper:
            k, first = _convolve(self.conv_keys, functional.silu(self.to_keys(x)), tails[1])
            v, second = _convolve(self.conv_values, functional.silu(self.to_values(x)), tails[2])
            return functional.normalize(self._split_heads(k), dim=-1), self._split_heads(v), [first, second]
        k, v = self._split_heads(self.to_keys(x)), self._split_heads(self.to_values(x))
        return (self.k_norm(k) if hasattr(self, "k_norm") else k), v, []

    def _steps(self, waiting: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of complete chunks, normed for storing, and the raw rest."""
        cut = waiting.shape[1] // self.chunk * self.chunk
        stored = waiting[:, :cut]
        return (self.store_norm(stored) if hasattr(self, "store_norm") else stored), waiting[:, cut:]

    def _gates(self, x: Tensor) -> _Gates:
        """Rate theta per token, and per step the logarithms of what momentum and memory keep."""
        rate = self.max_rate * torch.sigmoid(self.to_adaptive_step(x)).mT
        means = x.view(x.shape[0], -1, self.chunk, x.shape[-1]).mean(2)
        log_keep = functional.logsigmoid(-self.to_decay_factor(means)).mT
        log_moment = functional.logsigmoid(self.to_momentum(means)).mT if self.momentum else None
        if self.clamp is not None:
            log_keep = log_keep.clamp(max=_FLOOR)
            log_moment = None if log_moment is None else log_moment.clamp(max=_CAP)
        return _Gates(rate, log_moment, log_keep)

    def _run_windows(
        self, q: Tensor, k: Tensor, v: Tensor, gates: _Gates, state: MemoryState
    ) -> tuple[Tensor, MemoryState, Tensor]:
        """All windows in turn. Token t reads the weights after (t + 1) // chunk complete chunks of the stream."""
        if self.chunk == 1 and len(state.weights) == 1:
            return self._run_linear(q, k, v, gates, state)
        B, H, T, d = q.shape
        q, c = q.flatten(0, 1), self.chunk
        k, v = (part.reshape(B * H, -1, c, d) for part in (k, v))
        rate = gates.rate.reshape(B * H, -1, c)
        done = state.index // c
        level = (torch.arange(state.index, state.index + T, device=q.device) + 1) // c - done
        here = int((level == 0).sum())
        out, losses = [read(state.weights, q[:, :here], wrapped=self.wrapped)], []
        weights, moment, base = state.weights, state.momentum, state.base
        for a, b, fresh in self._windows(done, k.shape[1]):
            base = weights if fresh else base
            step, loss = self._gradients(base, k[:, a:b], v[:, a:b], rate[:, a:b])
            path, moments = self._learn(weights, moment, step, gates.part(a, b))
            upto = int((level <= b).sum())
            rows = level[here:upto] - a - 1
            now = [w.index_select(1, rows) for w in path]
            out.append(read(now, q[:, here:upto, None], wrapped=self.wrapped).squeeze(2))
            weights, moment, here = [w[:, -1] for w in path], [s[:, -1] for s in moments], upto
            losses.append(loss)
        y = torch.cat(out, 1).view(B, H, T, d)
        errors = torch.cat(losses, 1) if losses else rate
        mean = 1 if self.paper else d
        return y, MemoryState(0, weights, moment, base, state.rest), errors.view(B, H, -1) / mean

    def _run_linear(
        self, q: Tensor, k: Tensor, v: Tensor, gates: _Gates, state: MemoryState
    ) -> tuple[Tensor, MemoryState, Tensor]:
        """The same for a memory that is one matrix and is written at every token."""
        B, H, T, d = q.shape
        q, k, v = (part.flatten(0, 1) for part in (q, k, v))
        rate, log_keep = gates.rate.flatten(0, 1), gates.log_keep.flatten(0, 1)
        log_moment = None if gates.log_moment is None else gates.log_moment.flatten(0, 1)
        (base,), now = state.base, (state.weights[0], state.momentum[0])
        out, losses = [], []
        for a, b, fresh in self._windows(state.index, T):
            base = now[0] if fresh else base
            moment = None if log_moment is None else log_moment[:, a:b]
            y, now, loss = linear_window(
                (q[:, a:b], k[:, a:b], v[:, a:b]),
                rate[:, a:b],
                base,
                now,
                (moment, log_keep[:, a:b]),
                mean=not self.paper,
                clamp=self.clamp,
            )
            out.append(y)
            losses.append(loss)
        after = MemoryState(0, [now[0]], [now[1]], [base], state.rest)
        found = torch.cat(out, 1).view(B, H, T, d) if out else q.view(B, H, T, d)
        errors = torch.cat(losses, 1).view(B, H, T) if losses else gates.rate
        return found, after, errors / (1 if self.paper else d)

    def _gradients(self, base: FastWeights, k: Tensor, v: Tensor, rate: Tensor) -> tuple[FastWeights, Tensor]:
        return gradients(base, k, v, rate, mean=not self.paper, wrapped=self.wrapped, clamp=self.clamp)

    def _windows(self, done: int, steps: int) -> Iterator[tuple[int, int, bool]]:
        """Steps a…b between refreshes, and whether the weights at a are the new base."""
        span = steps + 1 if self.refresh is None else self.refresh // self.chunk
        a = 0
        while a < steps:
            first = done + a
            b = steps if self.refresh is None else min(steps, a + span - first % span)
            yield a, b, self.refresh is not None and first % span == 0
            a = b

    def _learn(
        self, weights: FastWeights, moment: FastWeights, step: FastWeights, gates: _Gates
    ) -> tuple[FastWeights, FastWeights]:
        """Weights and momentum after each step [B·H,m,...]."""
        log_keep = gates.log_keep.flatten(0, 1)
        if gates.log_moment is None:
            moments = [-g for g in step]
        else:
            log_moment = gates.log_moment.flatten(0, 1)
            moments = [recur(s, -g, log_moment) for s, g in zip(moment, step, strict=True)]
        return [recur(w, s, log_keep) for w, s in zip(weights, moments, strict=True)], moments

    def _merge_heads(self, y: Tensor, x: Tensor) -> Tensor:
        """Heads [B,H,T,d] as one answer [B,T,D]."""
        if self.heads == 1:
            return y.squeeze(1)
        if hasattr(self, "retrieve_gate"):
            inputs = self.retrieve_norm(x) if hasattr(self, "retrieve_norm") else x
            y = y * torch.sigmoid(self.retrieve_gate(inputs)).mT[..., None]
        out: Tensor = self.combine_heads(y.transpose(1, 2).flatten(2))
        return out


class _Gates(NamedTuple):
    """Rate theta [B,H,T'], and ln eta and ln(1 - alpha) [B,H,steps]; no ln eta without momentum."""

    rate: Tensor
    log_moment: Tensor | None
    log_keep: Tensor

    def part(self, a: int, b: int) -> _Gates:
        """Gradients of steps a…b; rates are cut where gradients are made."""
        moment = None if self.log_moment is None else self.log_moment[..., a:b]
        return _Gates(self.rate, moment, self.log_keep[..., a:b])


class _HeadNorm(nn.Module):
    """RMS per head, times gamma + 1."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(heads, 1, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise heads [B,H,T,d]."""
        return functional.rms_norm(x, x.shape[-1:]) * (self.gamma + 1)


def _convolve(conv: nn.Conv1d, z: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """Causal depthwise convolution of z [B,T,C] behind the last inputs [B,C,3], and the new last inputs."""
    inputs = torch.cat((tail, z.mT), 2)
    out = conv(inputs).mT if z.shape[1] else z
    return out, inputs[:, :, inputs.shape[2] - CONV_WIDTH + 1 :]
