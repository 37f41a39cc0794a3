"""CriticalKV (2025): SnapKV's scores, and a second choice by how much an entry's value would change the output."""

from typing import ClassVar

from pydantic import Field

from services.llm_longctx.methods.snapkv import SnapKv


class CriticalKv(SnapKv):
    """SnapKV that fills half of its budget by score times the norm of the value behind the output matrix.

    Any other evicting method whose scores are not negative does the same with `critical=true`.
    """

    name: ClassVar[str] = "criticalkv"
    optional_knobs: ClassVar = frozenset({"beta", "prefill", "pooling", "safeguard_rule"})
    contract_knobs: ClassVar = (
        {"window": 3, "kernel": 3, "ratio": 0.4, "critical_epsilon": 0.01},
        {
            "window": 3, "kernel": 3, "budget": 13, "allocation": "layer", "safeguard": 0.6, "every": 3, "recent": 4,
            "first_stage": 0.25,
        },
    )  # fmt: skip

    critical: bool = Field(True, description="Choose in two stages, the second by projected value norms.")
