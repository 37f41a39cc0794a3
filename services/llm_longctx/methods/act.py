"""ACT, attention calibration (2024): chosen heads take mass away from attention sinks that are not the first one.

In its flash-compatible form: dense output, its log-sum-exp and the few sink columns are all that it needs. Sinks are
frozen when the prompt ends, and the same formula serves decoding.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.methods.core.attention_method import AttentionMethod, Reference, Supports
from services.llm_longctx.methods.core.hook_inputs import AttentionOutput, CacheView
from services.llm_longctx.methods.core.hook_results import HeadRoles
from services.llm_longctx.methods.core.oracle import attention_weights, causal_mask, repeat_kv
from shared.lm.attention_math import calibrate, calibrate_mixed, column_mean, excuse_sink
from shared.lm.config import DecoderConfig
from shared.lm.head_plan import HeadPlan
from shared.lm.host_transfer import to_device

_ROWS = 512
"""Queries whose probabilities are held at a time."""

_POOR: Mapping[torch.dtype, float] = {torch.float64: 0.0, torch.float32: 0.02}
"""Mass outside the sinks below which the difference of two outputs is too rough, by the outputs' dtype."""


class Act(AttentionMethod):
    """Calibrated heads give up part of the attention that they spend on sinks in the middle of the text.

    Not an efficiency method: it changes what is read in order to gain accuracy. The last columns are averaged over few
    rows and often count as sinks; `min_rows` guards against that.
    """

    name: ClassVar[str] = "act"
    phases = frozenset({"prefill", "decode"})
    actions = frozenset({"transform"})
    granularity = "token"
    evidence = "head plan"
    supports = Supports(chunked_prefill=False, prefix_reuse=False)
    needs_plan = True

    beta: float = Field(0.4, ge=0, le=1, description="Share of their attention that sinks keep.")
    threshold: float = Field(0.1, gt=0, le=1, description="Mean attention above which a token is a sink.")
    relative_threshold: float | None = Field(None, gt=0, description="Instead: alpha, for a threshold of alpha / N.")
    excuse: Literal["first", "zero"] = Field("first", description="Which sink keeps all: the first found, or token 0.")
    min_rows: int = Field(0, ge=0, description="Columns that fewer queries can see are no sinks.")
    heads: tuple[tuple[int, int], ...] | None = Field(None, description="(layer, query head) pairs; or from a plan.")

    contract_knobs: ClassVar = ({"beta": 0.3, "threshold": 0.05}, {"beta": 0.3, "relative_threshold": 1.5})

    def reference(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_new: Tensor | None = None,
        k_new: Tensor | None = None,
        v_new: Tensor | None = None,
        **inputs: Any,
    ) -> Reference:
        """Section 1 on maps, every query head calibrated; extras: column_mean [H,N], sinks before the excuse.

        Steps q_new [H,T,d], k_new, v_new [G,T,d] go on with the prompt's sinks (section 3): mask [H,T,N+T].
        """
        H, N = q.shape[:2]
        mask = causal_mask(N)
        patterns = attention_weights(q, k, mask)
        means = column_mean(patterns)
        sinks = [self._sinks(row) for row in means]
        if q_new is not None and k_new is not None and v_new is not None:
            mask = causal_mask(N + q_new.shape[1])[N:]
            v = torch.cat((v, v_new), 1)
            patterns = attention_weights(q_new, torch.cat((k, k_new), 1), mask)
        maps = [calibrate(p, excuse_sink(s, self.excuse), self.beta) for p, s in zip(patterns, sinks, strict=True)]
        extras = {"column_mean": means, "sinks": [s.tolist() for s in sinks]}
        return Reference(torch.stack(maps) @ repeat_kv(v, H), mask.expand(H, *mask.shape), extras)

    def head_plan(self, config: DecoderConfig, plan: HeadPlan | None) -> HeadRoles:
        pairs = self.heads if self.heads is not None else (plan.heads if plan is not None else None)
        if pairs is None:
            detail = "act needs the heads that it calibrates, and there is no head plan with heads for this model."
            raise InvalidOption(
                detail, hint="Give heads, or search them: `fovea probe head-plans -O kind=act`.", field="longctx.heads"
            )
        wrong = [pair for pair in pairs if not (0 <= pair[0] < config.layers and 0 <= pair[1] < config.heads)]
        if wrong:
            detail = f"There is no head {wrong[0]}: this model has {config.layers} layers of {config.heads} heads."
            raise InvalidOption(detail, field="longctx.heads")
        return HeadRoles(calibrated=frozenset((int(layer), int(head)) for layer, head in pairs))

    def epilogue(self, view: AttentionOutput) -> tuple[Tensor, object]:
        out, group = view.out.clone(), view.q.shape[0] // len(view.heads)
        frozen = dict(view.memo) if isinstance(view.memo, tuple) and view.decoding else {}
        for head in view.calibrated:
            held = view.heads[head // group]
            wide = torch.promote_types(held.k.dtype, torch.float32)
            q, lse = view.q[head].to(wide), view.lse[head].to(wide)
            if not view.decoding:
                means = _column_means(q, held.k.to(wide), lse)
                frozen[head] = tuple(excuse_sink(self._sinks(means), self.excuse).tolist())
            if not frozen.get(head):
                continue
            sinks = to_device(frozen[head], q.device)
            out[head] = self._calibrate(q, lse, out[head], held, sinks, view.offset).to(out.dtype)
        return out, tuple(sorted(frozen.items()))

    def _calibrate(self, q: Tensor, lse: Tensor, mixed: Tensor, held: CacheView, sinks: Tensor, offset: int) -> Tensor:
        """One head's new output [T,d]; q [T,d] and lse [T] are wide."""
        at = torch.arange(offset, offset + len(q), device=q.device)[:, None]
        k, v = held.k.to(q.dtype), held.v.to(q.dtype)
        weights = _shares(q, k[sinks], lse).masked_fill(sinks > at, 0)
        changed = calibrate_mixed(mixed.to(q.dtype), weights, v[sinks], self.beta)
        # Where hardly any mass lies outside the sinks, o - A is what rounding left: those rows are mixed anew.
        mass = weights.sum(-1)
        poor = (1 - mass < _POOR.get(mixed.dtype, 0.25)) & (1 - mass >= 1e-12)

        def remix(q: Tensor, at: Tensor, weights: Tensor, mass: Tensor) -> Tensor:
            hidden = (held.positions > at).index_fill(1, sinks, value=True)
            logits = (q @ k.T * q.shape[-1] ** -0.5).masked_fill(hidden, float("-inf"))
            others = torch.nan_to_num(logits.softmax(-1), nan=0.0) @ v
            return self.beta * (weights @ v[sinks]) + (1 - self.beta * mass[:, None]) * others

        if len(q) == 1 and q.device.type != "cpu":  # one row is cheaper than to wait for how many there are
            return torch.where(poor[:, None], remix(q, at, weights, mass), changed)
        rows = poor.nonzero()[:, 0]
        if len(rows):
            changed[rows] = remix(q[rows], at[rows], weights[rows], mass[rows])
        return changed

    def _sinks(self, means: Tensor) -> Tensor:
        """Columns over the threshold, ascending, before the excuse."""
        N = len(means)
        threshold = self.threshold if self.relative_threshold is None else self.relative_threshold / N
        enough = N - torch.arange(N, device=means.device) >= self.min_rows
        return ((means > threshold) & enough).nonzero()[:, 0]


def _shares(q: Tensor, k: Tensor, lse: Tensor) -> Tensor:
    """Probabilities of keys k [n,d] for queries q [T,d] whose log-sum-exp is known: [T,n]."""
    return torch.exp(q @ k.T * q.shape[-1] ** -0.5 - lse[:, None])


def _column_means(q: Tensor, k: Tensor, lse: Tensor) -> Tensor:
    """`column_mean` of one head without its map: a pass over blocks of queries. q, k [N,d] → [N]."""
    N = len(q)
    total = q.new_zeros(N)
    for begin in range(0, N, _ROWS):
        end = min(begin + _ROWS, N)
        total[:end] += _shares(q[begin:end], k[:end], lse[begin:end]).tril(begin).sum(0)
    return total / torch.arange(N, 0, -1, device=q.device)
