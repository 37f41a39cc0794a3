"""StreamingLLM (2023): attention sinks at the text's begin, and the newest entries; what lies between is dropped."""

import math
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from services.llm_longctx.methods.core.eviction.method import EvictionMethod
from services.llm_longctx.methods.core.hook_inputs import ScoringView


class StreamingLlm(EvictionMethod):
    """Keeps the first few entries and the newest ones.

    `every` and `budget` make it slide while decoding, as in the paper; positions stay as they are, where the paper
    renumbers them inside the cache.
    """

    name: ClassVar[str] = "streamingllm"
    evidence = "static"

    sink: int = Field(4, ge=0, le=65536, description="First entries, which are always kept.")

    def score(self, view: ScoringView) -> Tensor:
        return (view.positions.double() / view.tokens).masked_fill(view.positions < self.sink, math.inf)
