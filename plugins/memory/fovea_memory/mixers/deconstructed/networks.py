"""Language models of deconstructed mixers: one decoder whose layers take their mixer from a layout.

Queries and keys of every dot-product variant have rotary positions; `nonapproximate` has no positions at all. A fixed
stream (noise, or the first tokens of a text) runs through all layers next to the batch where a layer needs it.
A session caches what each mixer needs, and no more. Knows mixers by the functions of `mixers`.
"""

from __future__ import annotations

import copy
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_memory.mixers.deconstructed.mixers import Recurrence, Variant, compute_map
from fovea_memory.mixers.deconstructed.mixers import layout as spread
from fovea_memory.mixers.rope import rotate_halves
from shared.lm.blocks import RMSNorm
from shared.registry import builder

_EPS = 1e-6


class _Gated(nn.Module):
    """Down(SiLU(gate x) · up x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return added


class _Projections(nn.Module):
    """Queries, keys, values and output, without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def split_heads(self, linear: nn.Linear, x: Tensor) -> Tensor:
        """Heads [B,h,L,d] of a projection of x [B,L,D]."""
        z: Tensor = linear(x)
        return z.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def queries_and_keys(self, x: Tensor, start: int, *, rotated: bool) -> tuple[Tensor, Tensor]:
        """Of x [B,L,D], rotated to the positions from `start` on if `rotated`."""
        q, k = self.split_heads(self.q_proj, x), self.split_heads(self.k_proj, x)
        at = torch.arange(start, start + x.shape[1], device=x.device)
        return (rotate_halves(q, at), rotate_halves(k, at)) if rotated else (q, k)

    def merge_heads(self, mixed: Tensor) -> Tensor:
        """Join heads [B,h,L,d] and project them [B,L,D]."""
        added: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return added


class _Block(nn.Module):
    """Norm, mixer, norm, MLP."""

    def __init__(self, variant: Variant, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.variant = variant
        self.norm_1, self.norm_2 = RMSNorm(width, _EPS), RMSNorm(width, _EPS)
        self.mixer = _Gated(width, 4 * width // 3) if variant == "mlp" else _Projections(width, heads)
        self.mlp = _Gated(width, hidden)

    def attention_map(self, z: Tensor, source: Tensor | None) -> Tensor | None:
        """Attention map [B|1,h,L,L]; None for a mixer that mixes no tokens. Arguments as in `mix`."""
        if isinstance(self.mixer, _Gated):
            return None
        source = z if source is None else source[:, : z.shape[1]]
        q, k = self.mixer.queries_and_keys(source, 0, rotated=self.variant != "nonapproximate")
        return compute_map(self.variant, q, k)

    def mix(self, z: Tensor, source: Tensor | None) -> Tensor:
        """Output of the mixer [B,L,D], to add to the stream; `source` as in `mixers.mix`, with a batch axis."""
        if isinstance(self.mixer, _Gated):
            added: Tensor = self.mixer(z)
            return added
        mixer = self.mixer
        source = z if source is None else source[:, : z.shape[1]]
        q, k = mixer.queries_and_keys(source, 0, rotated=self.variant != "nonapproximate")
        v = mixer.split_heads(mixer.v_proj, z)
        if self.variant in {"approximate", "nonapproximate"}:
            return mixer.merge_heads(compute_map(self.variant, q, k) @ v)
        q, k = (part.expand(v.shape[0], -1, -1, -1) for part in (q, k))
        return mixer.merge_heads(functional.scaled_dot_product_attention(q, k, v, is_causal=True))


@builder("deconstructed-lm")
class DeconstructedLM(nn.Module):
    """A Qwen2.5-like decoder whose layers have standard attention or a deconstructed mixer.

    Args:
        vocab, width, layers, heads: V, D, layers, h.
        mixer: The variant.
        layout: Which layers have it.
        context: Longest input, and length of the fixed stream.
        hidden: Width of the MLPs; 8D/3 rounded down unless given.
    """

    def __init__(
        self,
        vocab: int,
        width: int,
        layers: int,
        heads: int,
        mixer: Variant,
        layout: Literal["uniform", "hybrid"] = "uniform",
        context: int = 256,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.context, self.heads = context, heads
        self.mixers = cast("list[Variant]", spread(layout, layers, mixer))
        self.embed = nn.Embedding(vocab, width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.layers = nn.ModuleList(_Block(v, width, heads, hidden or 8 * width // 3) for v in self.mixers)
        self.norm, self.head = RMSNorm(width, _EPS), nn.Linear(width, vocab, bias=False)
        if "random_qk" in self.mixers:
            # Its spread is that of the embedding table, so that noise looks like tokens.
            self.register_buffer("noise", torch.randn(context, width) * 0.02)
        if "fixed_qk" in self.mixers:
            self.register_buffer("text", torch.arange(context) % vocab)

    def forward(self, ids: Tensor, *, skip: bool = False) -> Tensor:
        """Logits [B,L,V] of ids [B,L]; `skip` leaves out the variant's layers of a hybrid.

        Raises:
            ValueError: The input is longer than the fixed stream.
        """
        self.check_length(ids.shape[1])
        tokens = x = self.embed(ids)
        fixed = self._fixed(ids.shape[1])
        for i, block in enumerate(self.blocks):
            if skip and i % 2 == 0:
                continue
            x = x + block.mix(block.norm_1(x), self._source(block, tokens, fixed))
            x = x + block.mlp(block.norm_2(x))
            fixed = None if fixed is None else self._advance_fixed(block, fixed)
        return self.logits(x)

    @torch.no_grad()
    def maps(self, ids: Tensor) -> list[Tensor | None]:
        """Each layer's attention maps of ids [B,L], as `forward` has them; see `_Block.attention_map`.

        Raises:
            ValueError: The input is longer than the model reads.
        """
        self.check_length(ids.shape[1])
        tokens = x = self.embed(ids)
        fixed, found = self._fixed(ids.shape[1]), []
        for block in self.blocks:
            z, source = block.norm_1(x), self._source(block, tokens, fixed)
            found.append(block.attention_map(z, source))
            x = x + block.mix(z, source)
            x = x + block.mlp(block.norm_2(x))
            fixed = None if fixed is None else self._advance_fixed(block, fixed)
        return found

    def logits(self, x: Tensor) -> Tensor:
        """Final norm and output matrix."""
        found: Tensor = self.head(self.norm(x))
        return found

    def session(self, batch: int = 1) -> DeconstructedSession:
        """Start a stream."""
        return DeconstructedSession(self, batch)

    @property
    def blocks(self) -> list[_Block]:
        """Layers in order."""
        return cast("list[_Block]", self.layers)

    @torch.no_grad()
    def fixed_queries_and_keys(self) -> list[tuple[Tensor, Tensor] | None]:
        """Queries and keys of the fixed stream per layer [1,h,context,d]: they never depend on the input."""
        fixed = self._fixed(self.context)
        found: list[tuple[Tensor, Tensor] | None] = []
        for block in self.blocks:
            if fixed is not None and block.variant in {"random_qk", "fixed_qk"}:
                mixer = cast("_Projections", block.mixer)
                found.append(mixer.queries_and_keys(block.norm_1(fixed), 0, rotated=True))
            else:
                found.append(None)
            fixed = None if fixed is None else self._advance_fixed(block, fixed)
        return found

    def check_length(self, length: int) -> None:
        """Refuse inputs that are longer than the context.

        Raises:
            ValueError: `length` tokens are more than it reads.
        """
        if length > self.context:
            raise ValueError(f"this model reads {self.context} tokens, not {length}")

    def _fixed(self, length: int) -> Tensor | None:
        """The fixed stream [1,L,D] before the first layer, where some layer needs one."""
        if "random_qk" in self.mixers:
            return cast("Tensor", self.noise)[None, :length]
        if "fixed_qk" in self.mixers:
            return cast("Tensor", self.embed(cast("Tensor", self.text)[None, :length]))
        return None

    def _source(self, block: _Block, tokens: Tensor, fixed: Tensor | None) -> Tensor | None:
        if block.variant == "static_qk":
            return tokens
        return block.norm_1(fixed) if block.variant in {"random_qk", "fixed_qk"} else None

    def _advance_fixed(self, block: _Block, fixed: Tensor) -> Tensor:
        """The fixed stream behind a layer: a layer mixes it by its own maps."""
        z = block.norm_1(fixed)
        fixed = fixed + block.mix(z, z)
        return fixed + cast("Tensor", block.mlp(block.norm_2(fixed)))


class DeconstructedSession:
    """State of a stream that is read in pieces: per layer a cache, a recurrence or nothing, as its mixer needs."""

    def __init__(self, net: DeconstructedLM, batch: int) -> None:
        self.net, self.batch, self.index = net, batch, 0
        self.caches: list[Tensor | Recurrence | None] = [_initial_cache(block, batch) for block in net.blocks]
        self._fixed = net.fixed_queries_and_keys()

    @torch.no_grad()
    def feed(self, ids: Tensor) -> Tensor:
        """Read ids [B,t]; their logits [B,t,V].

        Raises:
            ValueError: The stream would be longer than the model reads.
        """
        net, t = self.net, ids.shape[1]
        net.check_length(self.index + t)
        if not t:
            return net.logits(net.embed(ids))
        tokens = x = net.embed(ids)
        for i, block in enumerate(net.blocks):
            x = x + self._mix(i, block, block.norm_1(x), tokens)
            x = x + block.mlp(block.norm_2(x))
        self.index += t
        return net.logits(x)

    def fork(self) -> Self:
        """An independent copy; cached tensors are never changed in place, so both hold the same ones."""
        twin = copy.copy(self)
        twin.caches = [cache.fork() if isinstance(cache, Recurrence) else cache for cache in self.caches]
        return twin

    @property
    def nbytes(self) -> list[int]:
        """Bytes that each layer caches."""
        found = []
        for cache, fixed in zip(self.caches, self._fixed, strict=True):
            own = cache.state_bytes() if isinstance(cache, Recurrence) else 0 if cache is None else cache.nbytes
            found.append(own + sum(part.nbytes for part in fixed or ()))
        return found

    def _mix(self, i: int, block: _Block, z: Tensor, tokens: Tensor) -> Tensor:
        mixer, cache = block.mixer, self.caches[i]
        if isinstance(mixer, _Gated):
            added: Tensor = mixer(z)
            return added
        v = mixer.split_heads(mixer.v_proj, z)
        if isinstance(cache, Recurrence):
            q, k = mixer.queries_and_keys(z, self.index, rotated=block.variant == "approximate")
            pieces = zip(*(torch.split(part, 1, 2) for part in (q, k, v)), strict=True)
            return mixer.merge_heads(torch.cat([cache.step_heads(*piece) for piece in pieces], 2))
        if cache is None:
            raise TypeError(f"a layer of kind {block.variant} has no cache")
        t = z.shape[1]
        if (fixed := self._fixed[i]) is None:
            source = tokens if block.variant == "static_qk" else z
            q, k = mixer.queries_and_keys(source, self.index, rotated=True)
            cache = torch.cat((cache, torch.stack((k, v))), 3)
            keys, values = cache
        else:
            cache = torch.cat((cache, v[None]), 3)
            q, keys, values = fixed[0][:, :, self.index : self.index + t], fixed[1][:, :, : self.index + t], cache[0]
        self.caches[i] = cache
        at = torch.arange(self.index + t, device=z.device)
        q, keys = (part.expand(self.batch, -1, -1, -1) for part in (q, keys))
        mask = at[self.index :, None] >= at
        return mixer.merge_heads(functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask))


def _initial_cache(block: _Block, batch: int) -> Tensor | Recurrence | None:
    """A layer's cache before the first token: keys and values [2,B,h,0,d], values alone, a recurrence, or nothing."""
    mixer = block.mixer
    if isinstance(mixer, _Gated):
        return None
    if block.variant in {"approximate", "nonapproximate"}:
        return Recurrence(block.variant, dict(mixer.named_parameters()), mixer.heads, batch)
    like = mixer.v_proj.weight
    kinds = 1 if block.variant in {"random_qk", "fixed_qk"} else 2
    return like.new_zeros(kinds, batch, mixer.heads, 0, like.shape[0] // mixer.heads)
