"""What the methods of this room claim about their sparsity: what each says of itself, and what was measured of it.

The measured part lies beside this file as `claims.json`, written from the results of `make bench ARGS=sparsity`. A
method that was not measured claims all the same, and the lint says what it owes. Knows claims; knows no method.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from shared.sparsity import Pattern, Phases, SparsityClaim

__all__ = ["MEASURED", "claimed"]

MEASURED = Path(__file__).with_name("claims.json")

Form = Literal["sparse", "dense"]


def claimed(
    name: str, *, granularity: Literal["block", "head", "token-topk"], mask: Literal["static", "dynamic"],
    prefill: Form = "dense", decode: Form = "dense",
) -> SparsityClaim:  # fmt: skip
    """The claim of a training-free attention method.

    Args:
        name: Of the method.
        granularity: What is left out together.
        mask: `dynamic` where it depends on the text.
        prefill: Whether prompts are read sparsely.
        decode: Whether answers are.
    """
    facts = dict(_measured().get(name, {}))
    knobs = facts.pop("knobs", {})
    layers: dict[str, float] = facts.get("sparsity_by_layer", {})
    return SparsityClaim(
        model=f"longctx/{name}", kind="attention", granularity=granularity, mask=mask, when="post",
        pattern=_pattern(granularity, knobs), phases=Phases(prefill=prefill, decode=decode, training="dense"),
        counted_in="artefact" if layers else "config",
        sparsity_global=fmean(layers.values()) if layers else 0.0,
        dense_layers=[layer for layer, share in layers.items() if share == 0],
        **{"theoretical_flops_ratio": 1.0, **facts},
    )  # fmt: skip


def _pattern(granularity: str, knobs: Mapping[str, Any]) -> Pattern | None:
    """The shape of what is left out, as far as the measured knobs say."""
    if granularity == "block":
        return Pattern(block=(knobs.get("block", 128), knobs.get("block", 128)))
    return Pattern(top_k=knobs.get("budget", 1)) if granularity == "token-topk" else None


@cache
def _measured() -> Mapping[str, Mapping[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(MEASURED.read_text("utf-8")) if MEASURED.exists() else {}
    return found
