"""LoRA adapters of a decoder (Hu et al. 2021): low-rank products in float32 next to the model's own linear layers.

One forward may hold rows with different adapters and with none: a row without one is computed as if there were no
others. Knows decoders and `shared.lm.ops`; knows nothing about files, requests or kernels.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea.errors import InvalidOption, Malformed
from shared.lm.decoder import Decoder
from shared.lm.lora_config import LoraConfig
from shared.lm.ops import NormLayer, Ops, OpsAround

PLACES = (*(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down")))
"""Linear layers of a block that may have an adapter, in the order of a block's products."""

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_WIDE = {torch.float32, torch.float16, torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """An adapter's addition to one linear layer: up (down x).

    Attributes:
        down: [r,in].
        up: [out,r], times the adapter's scale.
    """

    down: Tensor
    up: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Rows of x [...,in] → [...,out], in the adapter's type."""
        return functional.linear(functional.linear(x.to(self.down.dtype), self.down), self.up)

    def merge(self, weight: Tensor) -> Tensor:
        """The layer's matrix [out,in] with the adapter in it, in the adapter's type."""
        return weight.to(self.up.dtype) + self.up @ self.down


@dataclass(frozen=True, eq=False)
class LoraAdapter:
    """An adapter on one decoder.

    Attributes:
        digest: Identifies its content; cached prefixes depend on it.
        parts: By linear layer of the decoder, where that is.
        nbytes: Bytes of its matrices.
    """

    digest: str
    parts: Mapping[nn.Linear, LowRank]

    @property
    def nbytes(self) -> int:
        """Bytes of its matrices."""
        return sum(x.numel() * x.element_size() for part in self.parts.values() for x in (part.down, part.up))


def build_adapter(config: LoraConfig, tensors: Mapping[str, Tensor], model: Decoder, digest: str) -> LoraAdapter:
    """Fit the tensors of an `adapter_model.safetensors` to a decoder.

    Raises InvalidOption for a family without adapters or a tensor that is not served, Malformed for tensors that do not
    fit or are not finite.
    """
    if model.config.path == "gpt2":
        detail = "A GPT-2 takes no adapters: its queries, keys and values are one matrix."
        raise InvalidOption(detail, hint="Use a Llama, Qwen or Gemma 3.", field="model")
    layers = {
        f"model.layers.{i}.{place}": block.get_submodule(place)  # type: ignore[attr-defined]  # blocks are modules
        for i, block in enumerate(model.blocks)
        for place in PLACES
    }
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if (match := _KEY.fullmatch(key)) is None or match["module"] not in layers:
            detail = f"The adapter has the tensor {key[:120]!r}, which is not served."
            raise InvalidOption(detail, hint=f"Served are lora_A and lora_B of {', '.join(PLACES)}.", field="weights")
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    if not sides:
        raise Malformed("The adapter has no tensors.", field="weights")
    like = model.output_matrix
    dtype = torch.promote_types(like.dtype, torch.float32)
    parts = {layers[name]: _fit(name, pair, layers[name], config, dtype, like.device) for name, pair in sides.items()}
    return LoraAdapter(digest, parts)


def _fit(
    name: str,
    pair: Mapping[str, Tensor],
    layer: nn.Linear,
    config: LoraConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> LowRank:
    if not config.covers(name):
        raise Malformed(f"The adapter has tensors of {name}, which its configuration leaves out.", field="weights")
    rank, (out, inner) = config.rank_of(name), layer.weight.shape
    for side, shape in {"A": (rank, inner), "B": (out, rank)}.items():
        if (found := pair.get(side)) is None:
            raise Malformed(f"lora_{side} of {name} is missing.", field="weights")
        if found.shape != shape:
            detail = f"lora_{side} of {name} is {list(found.shape)}; it must be {list(shape)}."
            raise Malformed(detail, hint="Is it an adapter of this model?", field="weights")
        if found.dtype not in _WIDE or not bool(torch.isfinite(found).all()):
            detail = f"lora_{side} of {name} must be finite numbers of float32, float16 or bfloat16."
            raise Malformed(detail, field="weights")
    down, up = (pair[side].to(device, dtype).contiguous() for side in "AB")
    return LowRank(down, up * config.scale_of(name))


class LoraOps(OpsAround):
    """`shared.lm.ops.Ops` with adapters: products of rows that have one get what it adds, in its own type."""

    def __init__(self, inner: Ops, adapters: Sequence[LoraAdapter | None]) -> None:
        """Take an adapter or None for each row of the batch, or one for all rows."""
        super().__init__(inner)
        self._runs: list[tuple[LoraAdapter, slice]] = []
        begin = 0
        for row, adapter in enumerate(adapters):
            if row + 1 < len(adapters) and adapters[row + 1] is adapter:
                continue
            if adapter is not None:
                self._runs.append((adapter, slice(begin, row + 1)))
            begin = row + 1
        if len(self._runs) == 1 and self._runs[0][1] == slice(0, len(adapters)):
            self._runs = [(self._runs[0][0], slice(None))]

    def products(
        self, x: Tensor, layers: Sequence[nn.Linear], norm: NormLayer | None = None, *, added: bool = False
    ) -> list[Tensor]:
        found = self._inner.products(x, layers, norm, added=added)
        for adapter, rows in self._runs:
            touched = [(i, part) for i, layer in enumerate(layers) if (part := adapter.parts.get(layer)) is not None]
            if not touched:
                continue
            mine = x[rows] if norm is None else self._inner.norm(x[rows], norm)
            for i, part in touched:
                found[i][rows] = (found[i][rows] + part(mine)).to(found[i].dtype)
        return found

    def swiglu(self, x: Tensor, gate: nn.Linear, up: nn.Linear, norm: NormLayer | None = None) -> Tensor:
        """See `Ops`; rows whose gate or up is adapted are computed apart, so that the others stay as they are."""
        adapted = [(a, rows) for a, rows in self._runs if gate in a.parts or up in a.parts]
        if len(adapted) == 1 and adapted[0][1] == slice(None):
            return self._open_gate(x, adapted[0][0], gate, up, norm)
        mixed = self._inner.swiglu(x, gate, up, norm)
        for adapter, rows in adapted:
            mixed[rows] = self._open_gate(x[rows], adapter, gate, up, norm)
        return mixed

    def _open_gate(
        self, x: Tensor, adapter: LoraAdapter, gate: nn.Linear, up: nn.Linear, norm: NormLayer | None
    ) -> Tensor:
        opening, opened = LoraOps(self._inner, [adapter]).products(x, (gate, up), norm)
        return functional.silu(opening) * opened
