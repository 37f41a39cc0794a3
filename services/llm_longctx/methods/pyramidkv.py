"""PyramidKV (2024): SnapKV's scores; lower layers keep more."""

from typing import ClassVar, Literal

from pydantic import Field

from services.llm_longctx.methods.snapkv import SnapKv


class PyramidKv(SnapKv):
    """SnapKV whose lower layers keep more than the higher ones.

    As released: where the line from many to few leaves what is possible, every layer keeps the same. With the defaults
    it needs 1,280 kept entries to take effect.
    """

    name: ClassVar[str] = "pyramidkv"
    optional_knobs: ClassVar = SnapKv.optional_knobs | {
        "budget", "safeguard", "safeguard_rule", "prefill", "every", "recent", "pooling",
    }  # fmt: skip
    contract_knobs: ClassVar = ({"window": 4, "kernel": 3, "ratio": 0.4, "beta": 2.0},)

    allocation: Literal["head", "layer", "pyramid"] = Field("pyramid", description="Which entries compete.")
