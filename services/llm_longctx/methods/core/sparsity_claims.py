"""Sparsity claims of attention methods: what each says of itself, and what was measured of it.

The measured part lies next to this file as `claims.json`, written from the results of `make bench ARGS=sparsity`. A
method that was not measured claims all the same, and the lint lists the gaps. Knows claims; knows no method.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from shared.registry.sparsity_claims import build_claim as put_together
from shared.registry.sparsity_claims import read_measurements
from shared.sparsity import Pattern, Phases, SparsityClaim

MEASURED = Path(__file__).with_name("claims.json")

Form = Literal["sparse", "dense"]


def build_method_claim(
    name: str,
    *,
    granularity: Literal["block", "head", "token-topk"],
    mask: Literal["static", "dynamic"],
    prefill: Form = "dense",
    decode: Form = "dense",
) -> SparsityClaim:
    """The claim of a training-free attention method.

    Args:
        name: Of the method.
        granularity: Unit that is left out.
        mask: `dynamic` where it depends on the text.
        prefill: Whether prompts are read sparsely.
        decode: Whether answers are.
    """
    facts = dict(read_measurements(MEASURED).get(name, {}))
    knobs = facts.pop("knobs", {})
    return put_together(
        f"longctx/{name}",
        facts,
        kind="attention",
        granularity=granularity,
        mask=mask,
        when="post",
        pattern=_pattern(granularity, knobs),
        phases=Phases(prefill=prefill, decode=decode, training="dense"),
    )


def build_eviction_claim(name: str, *, static: bool) -> SparsityClaim | None:
    """The claim of a method that evicts by scores, which all of them share; None until the bench measured it.

    Args:
        name: Of the method.
        static: Whether scores are the same for every text.
    """
    if name not in read_measurements(MEASURED):
        return None
    return build_method_claim(name, granularity="token-topk", mask="static" if static else "dynamic", decode="sparse")


def _pattern(granularity: str, knobs: Mapping[str, Any]) -> Pattern | None:
    """The shape of what is left out, as far as the measured knobs say."""
    if granularity == "block":
        return Pattern(block=(knobs.get("block", 128), knobs.get("block", 128)))
    return Pattern(top_k=knobs.get("budget", 1)) if granularity == "token-topk" else None
