"""RazorAttention head plans: echo and induction scores of heads on a repeated random sequence.

"RazorAttention" (2024): heads that look at earlier copies of a token (echo), or at what followed them (induction), keep
their whole history. Knows the decoder's attention seam; knows nothing about experiments or how plans are used.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from services.interpretability.attention.pattern_capture import visit_patterns
from shared.lm.attention_math import echo_mask
from shared.lm.decoder import Decoder
from shared.lm.head_plan import HeadPlan, ModelId, Origin, Score, grouped_max
from shared.lm.host_transfer import to_device, to_host


def repeat_tokens(vocab: int, period: int, repeats: int, seed: int = 0) -> Tensor:
    """Repeat `period` random tokens `repeats` times: [period · repeats]."""
    once = torch.randint(0, vocab, (period,), generator=torch.Generator().manual_seed(seed))
    return once.repeat(repeats)


def echo_induction(net: Decoder, ids: Tensor | Sequence[int], period: int) -> Tensor:
    """Score echo and induction of query heads on ids [S] of this `period`: [L,2,H] float64 (section 3)."""
    tokens, config = to_device(ids, net.output_matrix.device), net.config
    S = len(tokens)
    totals = torch.zeros(config.layers, 2, config.heads, dtype=torch.float64, device=tokens.device)

    def visit(layer: int, start: int, rows: Tensor) -> None:
        queries = torch.arange(start, start + rows.shape[2], device=rows.device)
        chosen = torch.stack([echo_mask(queries, rows.shape[3], period, shift) for shift in (0, 1)])
        totals[layer] += torch.einsum("hts,mts->mh", rows[0].double(), chosen.double())

    visit_patterns(net, tokens[None], visit)
    return to_host(totals / S**2)


def razor_plan(
    net: Decoder,
    period: int = 2500,
    repeats: int = 4,
    echo: float = 0.01,
    induction: float = 0.14,
    seed: int = 0,
    *,
    model: ModelId | None = None,
    scores: Any = None,
) -> HeadPlan:
    """Make the plan of retrieval heads: the top share by echo, at least one, and that by induction, per key/value head.

    `period` random tokens come `repeats` times; `scores` [L,2,H] of exactly these, if already computed. `model` is the
    one that the plan names; by default it has this one's sizes.
    """
    config = net.config
    if scores is None:
        scores = echo_induction(net, repeat_tokens(config.vocab, period, repeats, seed), period)
    by_kind = torch.as_tensor(scores, dtype=torch.float64)
    tables: dict[str, Score] = {
        name: grouped_max(by_kind[:, i].tolist(), config.kv_heads) for i, name in enumerate(("echo", "induction"))
    }
    roles = torch.zeros(config.layers * config.kv_heads, dtype=torch.long)
    for name, share in (("echo", echo), ("induction", induction)):
        flat = torch.tensor(tables[name], dtype=torch.float64).flatten()
        count = max(1, round(len(flat) * share))
        roles[flat.argsort(descending=True, stable=True)[:count]] = 1
    spec = {"period": period, "repeats": repeats, "echo": echo, "induction": induction}
    return HeadPlan(
        schema_="head-plan/1",
        model=model or model_id(net),
        made_by=Origin(experiment="razor_scores", spec=spec, seed=seed),
        scores=tables,
        roles=roles.view(config.layers, -1).tolist(),
        rule=f"top {echo:g} by echo or top {induction:g} by induction; ties by lower (layer, head)",
        full_fraction=float(roles.double().mean()),
    )


def model_id(net: Decoder, name: str = "", weights_sha256: str = "") -> ModelId:
    """Return the identity of a model, as plans carry it."""
    sizes = {"layers": net.config.layers, "query_heads": net.config.heads, "kv_heads": net.config.kv_heads}
    return ModelId(name=name, weights_sha256=weights_sha256, **sizes)
