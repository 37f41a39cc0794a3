"""Head plans: which heads retrieve, by Razor's echo and induction scores or by Duo's trained gates.

What comes out is a `HeadPlan`, which the language service's methods read. Frozen models, replaced attention: all goes
through the decoder's seam. Knows nothing about engines or how plans are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from shared.lm.attention import sdpa
from shared.lm.decoder import Decoder
from shared.lm.head_plan import HeadPlan, ModelId, Origin, grouped_max
from shared.lm.patterns import echo_mask, streaming_mask

__all__ = ["DuoLoss", "duo_gate_loss", "duo_gates", "echo_induction", "razor_plan", "repeated"]

_ROWS = 256
"""Queries whose probabilities are held at a time."""

Progress = Callable[[float], None]


# Razor: echo and induction.


def repeated(vocab: int, period: int, repeats: int, seed: int = 0) -> Tensor:
    """`period` random tokens, `repeats` times: [period · repeats]."""
    once = torch.randint(0, vocab, (period,), generator=torch.Generator().manual_seed(seed))
    return once.repeat(repeats)


@torch.no_grad()
def echo_induction(net: Decoder, ids: Tensor | Sequence[int], period: int) -> Tensor:
    """Echo and induction scores of every query head, means over the whole map: [L,2,H] float64 (razor.md section 3).

    Args:
        net: The model.
        ids: A sequence [S] that repeats every `period` tokens.
        period: K.
    """
    tokens = torch.as_tensor(ids)
    S, config = len(tokens), net.config
    found = torch.zeros(config.layers, 2, config.heads, dtype=torch.float64)
    masks = torch.stack([echo_mask(S, period), echo_mask(S, period, 1)])
    masks[:, :period] = False

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, _offset: int) -> Tensor:
        keys = k[0].transpose(0, 1).repeat_interleave(config.heads // config.kv_heads, 0)
        queries = q[0].transpose(0, 1)
        for begin in range(0, S, _ROWS):
            rows = slice(begin, min(begin + _ROWS, S))
            logits = queries[:, rows] @ keys.mT * q.shape[-1] ** -0.5
            future = torch.arange(S) > torch.arange(S)[rows, None]
            pattern = logits.masked_fill(future, -torch.inf).softmax(-1).double()
            found[layer] += torch.einsum("hts,mts->mh", pattern, masks[:, rows].double())
        return sdpa(q, k.transpose(1, 2), v.transpose(1, 2))

    net(tokens[None], attend=attend, keep=1)
    return found / S**2


def razor_plan(
    net: Decoder, period: int = 2500, repeats: int = 4, echo: float = 0.01, induction: float = 0.14, seed: int = 0
) -> HeadPlan:
    """Retrieval heads: the top share by echo together with the top share by induction, per key/value head."""
    config = net.config
    scores = echo_induction(net, repeated(config.vocab, period, repeats, seed), period)
    tables = {name: grouped_max(scores[:, i].tolist(), config.kv_heads) for i, name in enumerate(("echo", "induction"))}
    roles = torch.zeros(config.layers * config.kv_heads, dtype=torch.long)
    for name, share in (("echo", echo), ("induction", induction)):
        flat = torch.tensor(tables[name], dtype=torch.float64).flatten()
        count = max(1, round(len(flat) * share))
        roles[flat.argsort(descending=True, stable=True)[:count]] = 1
    spec = {"period": period, "repeats": repeats, "echo": echo, "induction": induction}
    return HeadPlan.parse(
        {
            "schema": "head-plan/1",
            "model": _facts(net).model_dump(exclude_none=True),
            "made_by": Origin(experiment="razor_scores", spec=spec, seed=seed).model_dump(),
            "scores": tables,
            "roles": roles.view(config.layers, -1).tolist(),
            "rule": f"top {echo:g} by echo or top {induction:g} by induction; ties by lower (layer, head)",
            "full_fraction": float(roles.double().mean()),
        }
    )


# Duo: gates that are trained while the model is frozen.


@dataclass(frozen=True, slots=True, eq=False)
class DuoLoss:
    """Distillation, mean |gate|, and their weighted sum; differentiable in the gates."""

    distill: Tensor
    sparsity: Tensor
    total: Tensor


def duo_gate_loss(
    net: Decoder, ids: Tensor | Sequence[int], answer: Tensor, gates: Tensor, sink: int = 128, recent: int = 256,
    reg: float = 0.05,
) -> DuoLoss:  # fmt: skip
    """Loss of gates [L,G] on one text (duo.md section 4).

    Args:
        net: The frozen model.
        ids: Tokens [N].
        answer: Which positions count: bool [N], or positions.
        gates: One per layer and key/value head; clamped to 0 … 1.
        sink: First tokens that a streaming head sees.
        recent: Last tokens that it sees, the query's own included.
        reg: Weight of the gates' mean.
    """
    tokens = torch.as_tensor(ids).view(1, -1)
    teacher = _Teacher(net)
    taught: dict[str, Tensor] = {}
    with torch.no_grad():
        net(tokens, attend=teacher, keep=1, tap=_keep_final(taught, "a"))
    mask = streaming_mask(tokens.shape[1], sink, recent)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, _offset: int) -> Tensor:
        share = gates[layer].clamp(0, 1).to(q.dtype).repeat_interleave(net.config.heads // net.config.kv_heads)
        heads = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        streaming = functional.scaled_dot_product_attention(
            heads[0], heads[1], heads[2], attn_mask=mask, enable_gqa=True
        ).transpose(1, 2)
        return (1 - share[:, None]) * streaming + share[:, None] * teacher.mixed[layer]

    net(tokens, attend=attend, keep=1, tap=_keep_final(taught, "b"))
    distill = (taught["a"] - taught["b"])[0, torch.as_tensor(answer)].square().mean(-1).mean()
    sparsity = gates.abs().mean()
    return DuoLoss(distill, sparsity, distill + reg * sparsity)


class _Teacher:
    """Dense attention that keeps what every layer mixed."""

    def __init__(self, net: Decoder) -> None:
        self.mixed: list[Tensor] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, _offset: int) -> Tensor:
        self.mixed.append(sdpa(q, k.transpose(1, 2), v.transpose(1, 2)))
        return self.mixed[-1]


def _keep_final(into: dict[str, Tensor], name: str) -> Callable[[str, int, Tensor], Tensor]:
    def tap(site: str, _layer: int, x: Tensor) -> Tensor:
        if site == "normed":
            into[name] = x
        return x

    return tap


def duo_gates(
    net: Decoder, data: Iterable[tuple[Tensor, Tensor]], *, steps: int = 200, rate: float = 0.02, sink: int = 128,
    recent: int = 256, reg: float = 0.05, share: float = 0.5, seed: int = 0, progress: Progress | None = None,
) -> HeadPlan:  # fmt: skip
    """Train the gates on (ids, answer) pairs, one a step, and make the top `share` of heads full.

    AdamW without decay; the rate rises over the first fifth, falls over the last, to a tenth of its peak.
    """
    config = net.config
    net.requires_grad_(requires_grad=False)
    gates = torch.ones(config.layers, config.kv_heads, requires_grad=True)
    optimiser = torch.optim.AdamW([gates], lr=rate, weight_decay=0.0)
    done = 0
    for done, (ids, answer) in zip(range(1, steps + 1), data, strict=False):
        for group in optimiser.param_groups:
            group["lr"] = rate * _warmth(done - 1, steps)
        with torch.no_grad():
            gates.clamp_(0, 1)
        optimiser.zero_grad()
        duo_gate_loss(net, ids, answer, gates, sink, recent, reg).total.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimiser.step()
        if progress is not None:
            progress(done / steps)
    spec = {"steps": done, "rate": rate, "sink": sink, "recent": recent, "reg": reg}
    trained = gates.detach().clamp(0, 1).tolist()
    origin = Origin(experiment="duo_gates", spec=spec, seed=seed)
    return HeadPlan.ranked({"duo_gate": trained}, "duo_gate", share, model=_facts(net), made_by=origin)


def _warmth(step: int, steps: int) -> float:
    edge = max(math.ceil(steps / 5), 1)
    return max(0.1, min(1.0, (step + 1) / edge, (steps - step) / edge))


def _facts(net: Decoder) -> ModelId:
    config = net.config
    return ModelId(layers=config.layers, query_heads=config.heads, kv_heads=config.kv_heads)
