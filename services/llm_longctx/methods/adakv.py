"""Ada-KV (2024): SnapKV's scores; the heads of a layer compete for its entries."""

from typing import ClassVar, Literal

from pydantic import Field

from services.llm_longctx.methods.snapkv import SnapKv


class AdaKv(SnapKv):
    """SnapKV whose heads share their layer's budget: those that attend widely keep more.

    `safeguard` of the even budget is each head's own. Any other evicting method does the same with
    `allocation="layer"`.
    """

    name: ClassVar[str] = "adakv"
    optional_knobs: ClassVar = SnapKv.optional_knobs | {"budget", "beta", "prefill", "every", "recent", "pooling"}
    contract_knobs: ClassVar = ({"window": 3, "kernel": 3, "ratio": 0.4, "safeguard": 0.5},)

    allocation: Literal["head", "layer", "pyramid"] = Field("layer", description="Which entries compete.")
