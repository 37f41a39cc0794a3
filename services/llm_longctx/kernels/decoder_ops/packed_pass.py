"""A chunk's pass through a Llama-like decoder whose matrices have few bits, in six C++ calls per layer.

The arithmetic is the one of the decoder's own loop with `NativeOps`, bit for bit, and that loop is the oracle. Here the
addresses of weights are known beforehand, products add to the residual stream in place, and torch allocates little:
around short prompts that is a third of the time. Knows decoders and packed matrices; knows no caches or taps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from services.llm_longctx.kernels.decoder_ops.cpu_ext import NativeOps
from services.llm_longctx.kernels.native import bindings
from services.llm_longctx.kernels.quantized_linear import PackedMatrix
from shared.lm.attention import AttentionFn
from shared.lm.blocks import LlamaBlock, RMSNorm
from shared.lm.decoder import Decoder
from shared.lm.rope import Rotation

_Norm = tuple[Tensor, float, float]
_Matrix = tuple[int, int, int, int]  # bits, address of the data, of the bias or 0, rows


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    block: LlamaBlock
    before_attention: _Norm
    before_mlp: _Norm
    heads: tuple[_Matrix, ...]
    output: _Matrix
    gates: tuple[_Matrix, ...]
    down: _Matrix


class PackedPass:
    """Passes of one decoder; `of` says whether there can be any."""

    def __init__(self, model: Decoder, packed: Mapping[nn.Linear, PackedMatrix]) -> None:
        """Take a decoder that `is_possible` accepts, and its matrices, which are kept."""
        self._model, self._kept, self._dtype = model, packed, model.output_matrix.dtype
        self._layers = [self._read(cast("LlamaBlock", block)) for block in model.blocks]

    @staticmethod
    def is_possible(model: Decoder, packed: Mapping[nn.Linear, PackedMatrix]) -> bool:
        """Whether all matrices have few bits, and products with them are the fastest that this processor has."""
        blocks = model.blocks
        if not all(isinstance(block, LlamaBlock) for block in blocks) or model.config.windows or bindings.has_tiles():
            return False
        return all(part in packed for block in blocks for part in block.modules() if isinstance(part, nn.Linear))  # type: ignore[attr-defined]  # blocks of this family are modules

    def run(self, ids: Sequence[int], attend: AttentionFn, offset: int, keep: int | None, ops: NativeOps) -> Tensor:
        """Logits [1,keep,V] of tokens at positions `offset` …; see `Decoder.forward`."""
        model, T = self._model, len(ids)
        x = ops.widen(model.model.embed_tokens(torch.tensor(ids)))
        whole = cast("Rotation", model.rotations(torch.arange(offset, offset + T), self._dtype)[0])
        turn = whole[0].reshape(T, -1).contiguous(), whole[1].reshape(T, -1).contiguous()
        last, c = len(self._layers) - 1, model.config
        # Nobody else sees these, so all layers use them: fresh memory would cost a tenth of the time.
        sizes = c.heads * c.head_dim, c.kv_heads * c.head_dim, c.hidden
        q, k, hidden = (torch.empty(T, size, dtype=self._dtype) for size in sizes)
        for at, layer in enumerate(self._layers):
            z = attend(at, *self._heads(layer, x, (q, k), turn, ops), offset)
            if keep != 0 or at < last:
                q.view(z.shape[1:]).copy_(z[0])
                self._end(layer, x, q, hidden)
        kept = x if keep is None else x[T - keep :]
        return model.read_logits(kept, ops)[None]

    def _heads(
        self, layer: _Layer, x: Tensor, scratch: tuple[Tensor, Tensor], turn: tuple[Tensor, Tensor], ops: NativeOps
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q [1,T,H,d] and k [1,T,G,d], and v."""
        c, T, attn = self._model.config, len(x), layer.block.self_attn
        q, k = (one.view(1, T, -1, c.head_dim) for one in scratch)
        v = torch.empty_like(k)
        bindings.multiply_packed(x, _words(layer.heads, (q, k, v)), self._dtype, layer.before_attention)
        if layer.block.qk_norm:
            q, k = ops.norm(q, attn.q_norm), ops.norm(k, attn.k_norm)
        turned = torch.empty_like(q), torch.empty_like(k)
        bindings.rotate((q, k), *turn, turned)
        return *turned, v

    def _end(self, layer: _Layer, x: Tensor, mixed: Tensor, hidden: Tensor) -> None:
        """Add to the stream x [T,D] what mixed values [T,H·d] and the MLP give; hidden [T,F] is overwritten."""
        bindings.multiply_packed(mixed, _words((layer.output,), (x,)), self._dtype, None, output="added")
        words = _words(layer.gates, (hidden, hidden))
        bindings.multiply_packed(x, words, self._dtype, layer.before_mlp, gated=True)
        bindings.multiply_packed(hidden, _words((layer.down,), (x,)), self._dtype, None, output="added")

    def _read(self, block: LlamaBlock) -> _Layer:
        attn, mlp = block.self_attn, block.mlp
        return _Layer(
            block,
            _norm(block.input_layernorm),
            _norm(block.post_attention_layernorm),
            tuple(self._matrix(one) for one in (attn.q_proj, attn.k_proj, attn.v_proj)),
            self._matrix(attn.o_proj),
            (self._matrix(mlp.gate_proj), self._matrix(mlp.up_proj)),
            self._matrix(mlp.down_proj),
        )

    def _matrix(self, layer: nn.Linear) -> _Matrix:
        held = self._kept[layer]
        return held.bits, held.data.data_ptr(), 0 if layer.bias is None else layer.bias.data_ptr(), held.rows


def _norm(norm: RMSNorm) -> _Norm:
    return norm.weight, norm.eps, norm.offset


def _words(matrices: Sequence[_Matrix], outs: Sequence[Tensor]) -> list[int]:
    words = []
    for (bits, data, bias, rows), out in zip(matrices, outs, strict=True):
        words += [bits, data, bias, out.data_ptr(), rows]
    return words
