"""Activation cache: the activations of one run, from which variants can be run again starting at any layer.

Lower layers are never computed twice: a variant starts at the residual stream where it first differs. Knows the parts
of a block; knows no task, metric or experiment.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from services.interpretability.attention.pattern_capture import ProjectionEdit, run_blocks
from shared.lm.attention import DenseAttention
from shared.lm.blocks import Gemma3Block, GPT2Block, RMSNorm
from shared.lm.decoder import Decoder
from shared.lm.host_transfer import to_device
from shared.lm.taps import trace


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
        attn, mlp: Outputs of attention and MLP, per layer [B,T,D].
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
        return self.model.read_logits(x)

    def project_heads(self, layer: int, z: Tensor, position: int | None = None) -> Tensor:
        """Project mixed values z [...,H,d] into the residual stream, without the bias: [...,D].

        Where a norm follows the heads (Gemma 3), it scales by what all heads together had in this run, so that the
        parts add up; z then starts with the axes of the run, [B,T,…], or of one `position`, [B,…].
        """
        scale = self.output_scale(layer)
        added = project_values(self.model, layer, z)
        if scale is None:
            return added
        scale = scale if position is None else scale[:, position]
        return added * scale.view(*scale.shape[:-1], *[1] * (added.dim() - scale.dim()), scale.shape[-1])

    def output_scale(self, layer: int) -> Tensor | None:
        """Return what the norm after the heads multiplied by in this run [B,T,D]; None in families without one."""
        norm = norm_after_heads(self.model, layer)
        return None if norm is None else scale_of_norm(norm, project_values(self.model, layer, self.z[layer]))

    def swap_heads(self, layer: int, heads: list[int], z: Tensor, positions: list[int]) -> Tensor:
        """Return the stream between attention and MLP with each of n heads in turn mixing `z`: [n·B,T,D].

        `z` [B,T,H,d] replaces the head's own values at `positions`; all other positions stay.
        """
        mixed = self.z[layer].repeat(len(heads), 1, 1, 1, 1)
        at = to_device(positions, z.device, torch.long)
        for i, head in enumerate(heads):
            mixed[i, :, :, head].index_copy_(1, at, z[:, :, head].index_select(1, at))
        return (self.pre[layer] + self.model.blocks[layer].output(mixed)).flatten(0, 1)

    def run_from_mid(self, layer: int, mid: Tensor) -> Tensor:
        """Run variants that first differ in the stream `mid` [N,T,D] between attention and MLP; last logits [N,V]."""
        x = mid + self.model.blocks[layer].feed(mid)
        return self.run_from(layer + 1, x)

    def run_from(self, layer: int, x: Tensor, edit: ProjectionEdit | None = None) -> Tensor:
        """Run variants that enter block `layer` as x [N,T,D]; return their last logits [N,V]."""
        return run_blocks(self.model, layer, x, DenseAttention(windows=self.model.config.windows), edit)

    def repeat_rows(self, x: Tensor, times: int) -> Tensor:
        """Repeat rows x [B,…] once per variant, [times·B,…], without a copy in memory."""
        return x.expand(times, *x.shape).flatten(0, 1)


def final_norm(model: Decoder) -> torch.nn.Module:
    """Return the norm between the last block and the output matrix."""
    return cast("torch.nn.Module", model.transformer.ln_f if model.config.path == "gpt2" else model.model.norm)


def norm_after_heads(model: Decoder, layer: int) -> RMSNorm | None:
    """Return the norm between the heads of a layer and the residual stream; None in families without one."""
    block = model.blocks[layer]
    return block.post_attention_layernorm if isinstance(block, Gemma3Block) else None


def scale_of_norm(norm: RMSNorm, x: Tensor) -> Tensor:
    """Return what an RMSNorm multiplies x [...,D] by: (offset + weight) / sqrt(mean x² + eps)."""
    return (norm.offset + norm.weight) / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()


def project_values(model: Decoder, layer: int, z: Tensor) -> Tensor:
    """Project mixed values z [...,H,d] by the output matrix alone, without bias and norm: [...,D]."""
    return functional.linear(z.flatten(-2), output_weight(model, layer))


def output_weight(model: Decoder, layer: int) -> Tensor:
    """Return the matrix from a layer's mixed values to the residual stream [D,H·d]."""
    block = model.blocks[layer]
    return block.attn.c_proj.weight.t() if isinstance(block, GPT2Block) else cast("Any", block).self_attn.o_proj.weight


def run_with_cache(model: Decoder, ids: Tensor) -> ActivationCache:
    """Run ids [B,T] once and return the activations."""
    sites = ("z", "v", "resid_pre", "resid_mid", "attn_out", "mlp_out")
    layers = range(model.config.layers)
    traced = trace(model, ids, capture=[*(f"{s}.{l}" for s in sites for l in layers), "final"], keep=1)
    z, v, pre, mid, attn, mlp = ([traced[f"{s}.{l}"] for l in layers] for s in sites)
    return ActivationCache(model, ids, traced.logits[:, -1], z, v, pre, mid, attn, mlp, traced["final"])
