"""Activation cache: the activations of one run, from which variants can be run again starting at any layer.

Lower layers are never computed twice: a variant starts at the residual stream where it first differs. Knows the parts
of a block; knows no task, metric or experiment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from shared.errors import InvalidOption
from shared.lm.attention import DenseAttention
from shared.lm.decoder import Decoder
from shared.lm.rope import Rotation, frequencies, rotation
from shared.lm.taps import trace

__all__ = ["ActivationCache", "ProjectionEdit", "final_norm", "run_with_cache"]

ProjectionEdit = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""`edit(layer, q, k, v) -> q, k, v`: edits queries, keys and values [N,T,heads,d] before they are rotated."""


@dataclass(frozen=True)
class ActivationCache:
    """Activations of one run of ids [B,T].

    Attributes:
        model: The decoder that was run.
        ids: Its tokens.
        last: Logits of the last position [B,V].
        z: Mixed values per layer [B,T,H,d].
        v: Values per layer [B,T,G,d].
        pre, mid: Residual stream per layer, before the block and between attention and MLP [B,T,D].
        attn, mlp: What attention and MLP add, per layer [B,T,D].
        final: Residual stream before the final norm [B,T,D].
    """

    model: Decoder = field(repr=False)
    ids: Tensor
    last: Tensor
    z: list[Tensor]
    v: list[Tensor]
    pre: list[Tensor]
    mid: list[Tensor]
    attn: list[Tensor]
    mlp: list[Tensor]
    final: Tensor

    @property
    def layers(self) -> int:
        """L."""
        return len(self.z)

    @property
    def heads(self) -> int:
        """H."""
        return self.z[0].shape[2]

    def to_logits(self, x: Tensor) -> Tensor:
        """Return the logits of residual streams x [..., D]: final norm and output matrix."""
        return functional.linear(final_norm(self.model)(x), self.model.output_matrix)

    def project_heads(self, layer: int, z: Tensor) -> Tensor:
        """Project mixed values z [...,H,d] into the residual stream, without the bias: [...,D]."""
        block = self.model.blocks[layer]
        return block.output(z) - block.output(torch.zeros_like(z))

    def swap_heads(self, layer: int, heads: list[int], z: Tensor, positions: list[int]) -> Tensor:
        """Return the stream between attention and MLP with each head in turn mixing `z` at `positions`: [n·B,T,D].

        Args:
            layer: The layer of the heads.
            heads: n of them; each gets a copy of the batch.
            z: Mixed values that replace their own [B,T,H,d].
            positions: Where; all other positions stay.
        """
        (B, T, H, d), n = self.z[layer].shape, len(heads)
        change = torch.zeros(n, B, T, H, d, dtype=z.dtype, device=z.device)
        for i, head in enumerate(heads):
            change[i, :, positions, head] = (z - self.z[layer])[:, positions, head]
        return (self.mid[layer] + self.project_heads(layer, change)).flatten(0, 1)

    def run_from_mid(self, layer: int, mid: Tensor) -> Tensor:
        """Run variants that first differ in the stream `mid` [N,T,D] between attention and MLP; last logits [N,V]."""
        x = mid + self.model.blocks[layer].feed(mid)
        return self.run_from(layer + 1, x)

    def run_from(self, layer: int, x: Tensor, edit: ProjectionEdit | None = None) -> Tensor:
        """Run variants that enter block `layer` as x [N,T,D]; return their last logits [N,V]."""
        attend, turn = DenseAttention(), self._rotation(x)
        for l in range(layer, self.layers):
            block = self.model.blocks[l]
            q, k, v = block.project(x)
            if edit is not None:
                q, k, v = edit(l, q, k, v)
            q, k = block.apply_positions(q, k, turn)
            x = x + block.output(attend(l, q, k, v, 0))
            x = x + block.feed(x)
        return self.to_logits(x[:, -1])

    def repeat_rows(self, x: Tensor, times: int) -> Tensor:
        """Repeat rows x [B,…] once per variant, [times·B,…], without a copy in memory."""
        return x.expand(times, *x.shape).flatten(0, 1)

    def _rotation(self, x: Tensor) -> Rotation | None:
        if self.model.config.path == "gpt2":
            return None
        positions = torch.arange(x.shape[1], device=x.device)
        return rotation(frequencies(self.model.config).to(x.device), positions, x.dtype)


def final_norm(model: Decoder) -> torch.nn.Module:
    """Return the norm between the last block and the output matrix."""
    return cast("torch.nn.Module", model.transformer.ln_f if model.config.path == "gpt2" else model.model.norm)


def run_with_cache(model: Decoder, ids: Tensor) -> ActivationCache:
    """Run ids [B,T] once and return the activations.

    Raises:
        InvalidOption: A family with a norm after the heads: their contributions do not add up.
    """
    if model.config.path == "gemma3":
        detail = "In Gemma 3 a norm stands between the heads and the residual stream, so single heads can't be swapped."
        raise InvalidOption(detail, hint="Study it with ablate, attention, sinks or retrieval.", field="lm")
    sites = ("z", "v", "resid_pre", "resid_mid", "attn_out", "mlp_out")
    layers = range(model.config.layers)
    traced = trace(model, ids, capture=[*(f"{s}.{l}" for s in sites for l in layers), "final"], keep=1)
    z, v, pre, mid, attn, mlp = ([traced[f"{s}.{l}"] for l in layers] for s in sites)
    return ActivationCache(model, ids, traced.logits[:, -1], z, v, pre, mid, attn, mlp, traced["final"])
