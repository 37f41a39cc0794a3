"""Dense causal attention: every query reads everything before it. The baseline of all ratios."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from services.llm_longctx.methods.core.attention_method import AttentionMethod, Reference


class DenseMethod(AttentionMethod):
    """Every token attends to itself and to all before it; nothing is dropped."""

    name: ClassVar[str] = "dense"
    granularity = "token"

    def reference(self, q: Tensor, k: Tensor, v: Tensor, **inputs: Any) -> Reference:
        (H, N, d), G = q.shape, k.shape[0]
        mask = torch.ones(N, N, dtype=torch.bool).tril().expand(H, N, N)
        keys, values = (x.double().repeat_interleave(H // G, 0) for x in (k, v))
        logits = (q.double() @ keys.mT * d**-0.5).masked_fill(~mask, float("-inf"))
        return Reference(out=logits.softmax(-1) @ values, mask=mask)
