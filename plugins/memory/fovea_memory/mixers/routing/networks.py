"""Routing Transformer language model: local heads next to routing heads, key for key as in the PyTorch port.

In `port` mode it computes what the port computes, look-ahead included; in `causal` mode the same weights are a language
model token by token. Knows the checkpoint's layout; attention inside clusters is in `attention`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fovea_memory.mixers.rope import rotate_halves, rotate_pairs
from fovea_memory.mixers.routing.attention import (
    RoutingState,
    attend_clusters,
    attend_sorted,
    commitment_loss,
    nearest_cluster,
    normalise,
    route,
)
from shared.registry import builder


class ClusterAssignment(NamedTuple):
    """Clusters of a layer's tokens [B,H,T], -1 is none, and the vectors that were compared with centroids [B,H,T,d]."""

    units: Tensor
    clusters: Tensor


AttentionResult = tuple[Tensor, Tensor, ClusterAssignment | None]
"""Output of attention [B,T,D], the commitment loss, and in causal mode the clusters of the tokens."""


class _Means(nn.Module):
    """Centroids; moved by training, never by reading."""

    def __init__(self, heads: int, clusters: int, head_dim: int) -> None:
        super().__init__()
        self.register_buffer("means", normalise(torch.randn(heads, clusters, head_dim)))
        self.register_buffer("initted", torch.tensor(data=True))


class _Clusters(nn.Module):
    """Global attention, in the checkpoint's words."""

    def __init__(self, heads: int, clusters: int, head_dim: int) -> None:
        super().__init__()
        self.kmeans = _Means(heads, clusters, head_dim)


class _Attention(nn.Module):
    """Local heads first, then routing heads, where there are any; both read the same normed x."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        local_heads: int,
        window: int,
        local_window: int,
        clusters: int,
        *,
        shared: bool,
    ) -> None:
        super().__init__()
        self.shared = shared
        self.local_heads, self.head_dim, self.window, self.local_window = local_heads, head_dim, window, local_window
        routing = heads - local_heads
        self.local_to_qkv = nn.Linear(width, 3 * local_heads * head_dim)
        self.routes = routing > 0
        if self.routes:
            self.global_attn = _Clusters(routing, clusters, head_dim)
            self.to_q = nn.Linear(width, routing * head_dim, bias=False)
            self.to_v = nn.Linear(width, routing * head_dim, bias=False)
        if self.routes and not shared:
            self.to_k = nn.Linear(width, routing * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, width, bias=False)

    @property
    def means(self) -> Tensor:
        """Centroids [H,K,d]."""
        return cast("Tensor", self.global_attn.kmeans.means)

    def forward(self, z: Tensor, mode: str, tokens: Tensor | None) -> AttentionResult:
        """Mix z [B,T,D]; `tokens` [B,T] marks what is not padding."""
        heads, loss, chosen = self._local(z), z.new_zeros(()), None
        if self.routes:
            routed, loss, chosen = self._route(z, mode, tokens)
            heads = torch.cat((heads, routed), 1)
        added: Tensor = self.to_out(heads.transpose(1, 2).flatten(2))
        return added, loss, chosen

    def routing_qkv(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the routing heads [B,h,T,d], as they are projected; shared keys are queries."""
        q, v = self.split_heads(self.to_q, z), self.split_heads(self.to_v, z)
        return q, q if self.shared else self.split_heads(self.to_k, z), v

    def split_heads(self, linear: nn.Linear, z: Tensor) -> Tensor:
        """Heads [B,h,T,d]."""
        x: Tensor = linear(z)
        return x.view(*z.shape[:2], -1, self.head_dim).transpose(1, 2)

    def local_qkv(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the local heads [B,h,T,d]; queries scaled, nothing rotated."""
        q, k, v = self.split_heads(self.local_to_qkv, z).chunk(3, 1)
        return q * self.head_dim**-0.5, k, v

    def _local(self, z: Tensor) -> Tensor:
        """Blocks of local_window tokens attend to themselves and the block before."""
        w = self.local_window
        q, k, v = (torch.stack(torch.split(part, w, 2), 2) for part in self.local_qkv(z))
        k, v = (torch.cat((functional.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x), 3) for x in (k, v))
        at = torch.arange(2 * w, device=z.device)
        visible = (at[w:, None] >= at).expand(q.shape[2], w, 2 * w).clone()
        visible[0, :, :w] = False
        q, k = rotate_halves(q, at[w:]).flatten(0, 1), rotate_halves(k, at).flatten(0, 1)
        mixed = functional.scaled_dot_product_attention(q, k, v.flatten(0, 1), attn_mask=visible, scale=1.0)
        return mixed.view(v.shape[0], -1, z.shape[1], self.head_dim)

    def _route(self, z: Tensor, mode: str, tokens: Tensor | None) -> AttentionResult:
        at = torch.arange(z.shape[1], device=z.device)
        q, k, v = self.routing_qkv(z)
        if mode == "port":
            found = route(rotate_pairs(q, at), q, rotate_pairs(v, at), self.means, self.window, "port", mask=tokens)
            return found.out, found.loss, None
        unit = normalise(q)
        of, loss = nearest_cluster(unit, self.means), commitment_loss((unit,), self.means)
        if tokens is not None:
            of = of.masked_fill(~tokens[:, None], -1)
        query, key = rotate_pairs(unit, at), rotate_pairs(unit if self.shared else normalise(k), at)
        if self.training:
            mixed = attend_sorted(query, key, v, of, self.window)
        else:  # where not a bit may depend on later tokens
            mixed = attend_clusters(query, key, v, of, of, self.means.shape[1], self.window)
        return mixed, loss, ClusterAssignment(unit, of)


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.w2(functional.gelu(self.w1(x)))
        return added


class _Wrapped(nn.Module):
    """The checkpoint's wrappers: `fn` behind an optional `norm`."""

    def __init__(self, fn: nn.Module, width: int | None = None) -> None:
        super().__init__()
        if width is not None:
            self.norm = nn.LayerNorm(width)
        self.fn = fn


class _Layers(nn.Module):
    def __init__(self, pairs: list[tuple[_Wrapped, _Wrapped]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)


class _Stack(nn.Module):
    def __init__(self, pairs: list[tuple[_Wrapped, _Wrapped]]) -> None:
        super().__init__()
        self.layers = _Layers(pairs)


@builder("routing-lm")
class RoutingLM(nn.Module):
    """Embedding, layers of local and routing heads, output with bias; positions are rotary only.

    Attributes:
        mode: `causal`, or `port` for what the released code computes.
        context: Longest input; clusters are context / window.

    Args:
        vocab, width, layers, heads, head_dim: Sizes.
        local_heads: How many of the heads are local, the first ones.
        window: Members w of a cluster.
        local_window: Tokens of a local block.
        context: See above.
        mode: See above.
        shared: Keys of routing heads are their queries, as in the port; else they have a projection `to_k` of their
            own, in causal mode. Then too a token's query says which cluster it is in: with clusters of their own,
            keys drift to where no query looks.
        first: The first layer that routes; in those before it all heads are local.
    """

    optional = ("sinu_pos_emb.emb", "rel_pos.inv_freq", "mem_key", "mem_value")
    """Endings of keys that a checkpoint may carry and that hold nothing to load."""

    def __init__(
        self,
        vocab: int,
        width: int,
        layers: int,
        heads: int,
        head_dim: int,
        local_heads: int,
        window: int,
        local_window: int,
        context: int,
        mode: Literal["causal", "port"] = "causal",
        *,
        shared: bool = True,
        first: int = 0,
    ) -> None:
        if mode == "port" and not shared:
            raise ValueError("port mode has shared queries and keys only: give shared=True, or mode='causal'")
        super().__init__()
        self.mode, self.context, self.local_window = mode, context, local_window
        self.token_emb = nn.Embedding(vocab, width)
        nn.init.normal_(self.token_emb.weight, std=0.02)
        windows = (window, local_window, context // window)
        local = [heads if layer < first else local_heads for layer in range(layers)]
        attention = [_Attention(width, heads, head_dim, own, *windows, shared=shared) for own in local]
        self.routing_transformer = _Stack(
            [(_Wrapped(one, width), _Wrapped(_Wrapped(_FeedForward(width)), width)) for one in attention]
        )
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, vocab)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B,T,V] of ids [B,T].

        Raises:
            ValueError: More tokens than the context; in `port` mode also a length not divisible by local_window.
        """
        return self.with_loss(ids)[0]

    def with_loss(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the sum of the layers' commitment losses."""
        return self.forward_with_assignments(ids)[:2]

    def forward_with_assignments(self, ids: Tensor) -> tuple[Tensor, Tensor, list[ClusterAssignment | None]]:
        """As `with_loss`, and in causal mode each layer's cluster assignment; None for one without routing heads."""
        ids, tokens, length = self._padded(ids)
        x: Tensor = self.token_emb(ids)
        loss, chosen = x.new_zeros(()), []
        for norm_1, attention, norm_2, feed in self.blocks:
            added, lost, choice = attention(norm_1(x), self.mode, tokens)
            x, loss = x + added, loss + lost
            x = x + feed(norm_2(x))
            chosen.append(choice and ClusterAssignment(choice.units[:, :, :length], choice.clusters[..., :length]))
        return self.logits(x[:, :length]), loss, chosen

    def logits(self, x: Tensor) -> Tensor:
        """Final norm and output matrix."""
        found: Tensor = self.out(self.norm(x))
        return found

    def session(self, batch: int = 1) -> RoutingSession:
        """Start a stream, in causal mode."""
        return RoutingSession(self, batch)

    @property
    def blocks(self) -> list[tuple[nn.LayerNorm, _Attention, nn.LayerNorm, _FeedForward]]:
        """Per layer norm, attention, norm, feed-forward."""
        pairs = cast("Any", self.routing_transformer.layers.layers)
        return [(a.norm, a.fn, f.norm, f.fn.fn) for a, f in pairs]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a port's weights; buffers that the network makes itself may be in the file or not."""
        kept = {key: value for key, value in state_dict.items() if not key.endswith(self.optional)}
        flags = {key: value for key, value in self.state_dict().items() if key.endswith("initted")}
        return super().load_state_dict({**flags, **kept}, strict=strict, assign=assign)

    def check_length(self, length: int) -> None:
        """Refuse more tokens than the context: ValueError."""
        if length > self.context:
            raise ValueError(f"this model reads {self.context} tokens, not {length}")

    def _padded(self, ids: Tensor) -> tuple[Tensor, Tensor | None, int]:
        """Ids filled up to whole local blocks, and which of them are tokens."""
        length = ids.shape[1]
        self.check_length(length)
        lack = -length % self.local_window
        if not lack:
            return ids, None, length
        if self.mode == "port":
            raise ValueError(f"in port mode the length must be a multiple of {self.local_window}, not {length}")
        tokens = torch.arange(length + lack, device=ids.device) < length
        return functional.pad(ids, (0, lack)), tokens.expand(ids.shape[0], -1), length


class RoutingSession:
    """State of a stream in causal mode: two local blocks of keys, and a ring buffer per cluster."""

    def __init__(self, net: RoutingLM, batch: int) -> None:
        self.net, self.batch, self.index = net, batch, 0
        layers = [attention for _, attention, _, _ in net.blocks]
        self.rings = {
            number: RoutingState(a.means, a.window, shared=a.shared) for number, a in enumerate(layers) if a.routes
        }
        self.local_cache = [net.out.weight.new_zeros(2, batch, a.local_heads, 0, a.head_dim) for a in layers]

    @torch.no_grad()
    def feed(self, ids: Tensor) -> Tensor:
        """Read ids [B,t]; their logits [B,t,V].

        Raises:
            ValueError: The stream would be longer than the model's context.
        """
        self.net.check_length(self.index + ids.shape[1])
        found = [self._step(token) for token in torch.split(ids, 1, 1)] if ids.shape[1] else []
        return torch.cat(found, 1) if found else self.net.logits(self.net.token_emb(ids))

    @property
    def nbytes(self) -> int:
        """Bytes of all caches."""
        return sum(ring.nbytes for ring in self.rings.values()) + sum(keys.nbytes for keys in self.local_cache)

    @property
    def occupancy(self) -> list[Tensor]:
        """Per layer that routes the tokens of each cluster so far [B,H,K]."""
        return [ring.occupancy for ring in self.rings.values()]

    def fork(self) -> Self:
        """An independent copy."""
        twin = copy.copy(self)
        twin.local_cache = list(self.local_cache)
        twin.rings = {layer: ring.fork() for layer, ring in self.rings.items()}
        return twin

    def _step(self, ids: Tensor) -> Tensor:
        x: Tensor = self.net.token_emb(ids)
        for layer, (norm_1, attention, norm_2, feed) in enumerate(self.net.blocks):
            z = norm_1(x)
            heads = self._local_step(layer, attention, z)
            if attention.routes:
                routed = self.rings[layer].step(*attention.routing_qkv(z), self._rotate)
                heads = torch.cat((heads, routed), 1)
            x = x + attention.to_out(heads.transpose(1, 2).flatten(2))
            x = x + feed(norm_2(x))
        self.index += 1
        return self.net.logits(x)

    def _rotate(self, x: Tensor) -> Tensor:
        """Positions of the token in hand."""
        return rotate_pairs(x, torch.tensor([self.index], device=x.device))

    def _local_step(self, layer: int, attention: _Attention, z: Tensor) -> Tensor:
        """One token of the local heads: its block so far, and the block before."""
        w = attention.local_window
        q, k, v = attention.local_qkv(z)
        within = self.index % w
        kept = self.local_cache[layer]
        if within == 0:
            kept = kept[..., max(kept.shape[3] - w, 0) :, :]
        kept = torch.cat((kept, torch.stack((k, v))), 3)
        self.local_cache[layer] = kept
        last = torch.arange(w + within + 1, device=z.device)[-kept.shape[3] :]
        scores = rotate_halves(q, last[-1:]) @ rotate_halves(kept[0], last).mT
        return scores.softmax(-1) @ kept[1]
