"""Routing attention: tokens attend within their k-means cluster (Roy et al., 2021), in three modes.

`paper` and `port` compute what was released. There a cluster's members are the best w of the *whole* sequence: a later
token changes who attends to whom earlier, so they are no language models token by token, and are here for conformance
and study. `causal` is ours and the one that is served: each token belongs to its nearest cluster and attends to the
last w tokens of it, never to later ones.

Axes: B, H routing heads, T, K clusters, w window, d head width. Knows functions and a ring-buffer state; the language
model is in `networks`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

Mode = Literal["causal", "port", "paper"]
Rotate = Callable[[Tensor], Tensor]

COMMITMENT = 1e-4
_SELF = -5e4
"""Logit of a token to itself where queries and keys are shared: it attends to itself only when it is alone."""


@dataclass(frozen=True, slots=True)
class RoutingOutput:
    """Output of routing attention.

    Attributes:
        out: Mixed values [B,H,T,d].
        query_members, key_members: Tokens of each cluster [B,H,K,w]; in causal mode the cluster of each token [B,H,T],
            -1 where padded.
        loss: How far tokens are from their centroids; pulls tokens, not centroids.
    """

    out: Tensor
    query_members: Tensor
    key_members: Tensor
    loss: Tensor


def route(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    centroids: Tensor,
    window: int,
    mode: Mode = "causal",
    *,
    shared: bool = True,
    causal: bool = True,
    mask: Tensor | None = None,
    memory: tuple[Tensor, Tensor] | None = None,
) -> RoutingOutput:
    """Attention inside clusters; no positions are applied here.

    Args:
        q: Queries [B,H,T,d].
        k: Keys [B,H,T,d]; ignored when they are the normalised queries.
        v: Values [B,H,T,d].
        centroids: [H,K,d].
        window: Members w of a cluster.
        mode: Which of the three.
        shared: Keys are the normalised queries.
        causal: Nobody attends to later members; `causal` mode always is.
        mask: Which tokens are not padding [B,T].
        memory: One more key and value per cluster that all members see [H,K,m,d] each (`port`).
    """
    if mode == "causal":
        return _causal(q, k, v, centroids, window, shared=shared, mask=mask)
    if mode == "paper":
        return _paper(q, k, v, centroids, window, shared=shared, causal=causal, mask=mask)
    return _port(q, k, v, centroids, window, shared=shared, causal=causal, mask=mask, memory=memory)


def normalise(x: Tensor) -> Tensor:
    """LayerNorm over d without scale and shift: clusters compare tokens by it."""
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def nearest_cluster(x: Tensor, centroids: Tensor) -> Tensor:
    """The cluster of each token [B,H,T] of x [B,H,T,d]."""
    return (x @ centroids.mT).argmax(-1)


def attend_clusters(q: Tensor, k: Tensor, v: Tensor, of_q: Tensor, of_k: Tensor, clusters: int, window: int) -> Tensor:
    """Each query attends to the last `window` keys of its cluster that are not later, and to itself [B,H,T,d].

    Args:
        q: Queries [B,H,T,d].
        k: Keys [B,H,T,d].
        v: Values [B,H,T,d].
        of_q: Clusters of the queries [B,H,T]; -1 attends to nothing and gets zeros.
        of_k: Clusters of the keys; -1 is visible to none.
        clusters: K.
        window: w.
    """
    visible = _visible(of_q, of_k, clusters, window) & (of_q >= 0)[..., :, None]
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~visible, -torch.inf)
    peak = scores.detach().amax(-1, keepdim=True)
    exps = (scores - peak.masked_fill(peak.isneginf(), 0)).exp()
    return exps / exps.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny) @ v


def _visible(of_q: Tensor, of_k: Tensor, clusters: int, window: int) -> Tensor:
    """Which keys a query may attend to [B,H,T,T]: the last `window` of its cluster, and itself."""
    place = functional.one_hot(of_k + 1, clusters + 1).cumsum(2)  # tokens of each cluster so far [B,H,T,K+1]
    stride = of_q.shape[2] + window  # cluster and number in one: a difference below the window is the same cluster
    own, upto = ((of * stride + place.gather(3, (of + 1)[..., None])[..., 0]).int() for of in (of_k, of_q))
    since = upto[..., :, None] - own[..., None, :]
    visible = (since >= 0) & (since < window)
    visible.diagonal(dim1=-2, dim2=-1).fill_(True)
    return visible


def attend_sorted(q: Tensor, k: Tensor, v: Tensor, of: Tensor, window: int) -> Tensor:
    """The same where queries and keys share their clusters, in T · w instead of T · T steps: the form for training.

    Sorted by cluster and then by time, the last w tokens of a token's cluster stand right before it, so that blocks of
    w attend to themselves and to the block before. Sums run in another order than in `attend_clusters`: outputs agree
    to rounding, not to the bit.

    Args:
        q: Queries [B,H,T,d].
        k: Keys [B,H,T,d].
        v: Values [B,H,T,d].
        of: Clusters [B,H,T]; -1 attends to nothing and gets zeros.
        window: w.
    """
    B, H, T, d = q.shape
    order = of.argsort(dim=-1, stable=True)
    rows = order + T * torch.arange(B * H, device=q.device).view(B, H, 1)
    lack = -T % window

    def blocks(x: Tensor) -> Tensor:
        """[B,H,T,...] → [B·H,n,w,...], sorted."""
        x = x.reshape(B * H * T, -1).index_select(0, rows.flatten()).view(B * H, T, -1)
        return functional.pad(x, (0, 0, 0, lack)).view(B * H, -1, window, x.shape[-1])

    def with_previous(x: Tensor) -> Tensor:
        """Each block behind the one before it [B·H,n,2w,...]."""
        return torch.cat((functional.pad(x, (0, 0, 0, 0, 1, 0))[:, :-1], x), 2)

    cluster = blocks(of + 2)[..., 0]  # 0 is nobody: a block before the first
    near = torch.arange(2 * window, device=q.device) - torch.arange(window, device=q.device)[:, None]
    same = cluster[..., :, None] == with_previous(cluster[..., None])[..., 0][..., None, :]
    visible = same & ((near > 0) & (near <= window))
    mixed = functional.scaled_dot_product_attention(
        blocks(q), with_previous(blocks(k)), with_previous(blocks(v)), attn_mask=visible
    )
    back = torch.empty_like(order).scatter_(2, order, torch.arange(T, device=q.device).expand_as(order))
    where = (back + (T + lack) * torch.arange(B * H, device=q.device).view(B, H, 1)).flatten()
    out = mixed.reshape(B * H * (T + lack), d).index_select(0, where).view(B, H, T, d)
    return out.masked_fill((of < 0)[..., None], 0)


def _causal(
    q: Tensor, k: Tensor, v: Tensor, centroids: Tensor, window: int, *, shared: bool, mask: Tensor | None
) -> RoutingOutput:
    q = normalise(q)
    k = q if shared else normalise(k)
    clusters = centroids.shape[1]
    of_q = nearest_cluster(q, centroids)
    of_k = of_q if shared else nearest_cluster(k, centroids)
    loss = commitment_loss((q,) if shared else (q, k), centroids)
    if mask is not None:
        of_q, of_k = (of.masked_fill(~mask[:, None], -1) for of in (of_q, of_k))
    return RoutingOutput(attend_clusters(q, k, v, of_q, of_k, clusters, window), of_q, of_k, loss)


def _paper(
    q: Tensor, k: Tensor, v: Tensor, centroids: Tensor, window: int, *, shared: bool, causal: bool, mask: Tensor | None
) -> RoutingOutput:
    """The authors' code: unscaled logits, members sorted by time, a triangle by rank."""
    q = normalise(q)
    k = q if shared else normalise(k)
    width = min(window, q.shape[2])
    members = (q @ centroids.mT).mT.topk(width, -1).indices.sort(-1).values
    others = members if shared else (k @ centroids.mT).mT.topk(width, -1).indices.sort(-1).values
    scores = _gather(q, members) @ _gather(k, others).mT
    if mask is not None:
        scores = scores + -1e9 * (~_gather_mask(mask, others))[..., None, :].to(scores.dtype)
    if causal:
        later = torch.ones(width, width, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, torch.finfo(scores.dtype).min)
    mixed = scores.softmax(-1) @ _gather(v, others)
    loss = commitment_loss((q,), centroids) + commitment_loss((k,), centroids)
    return RoutingOutput(_scatter_mean(mixed, members, q.shape[2], 1e-2), members, others, loss)


def _port(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    centroids: Tensor,
    window: int,
    *,
    shared: bool,
    causal: bool,
    mask: Tensor | None,
    memory: tuple[Tensor, Tensor] | None,
) -> RoutingOutput:
    """The PyTorch port: raw queries, members by similarity, masks by original position."""
    unit = functional.normalize(q, dim=-1)
    unit_k = unit if shared else functional.normalize(k, dim=-1)
    k = unit if shared else k
    width = min(window, q.shape[2])
    members = (unit @ centroids.mT).mT.topk(width, -1).indices
    others = members if shared else (unit_k @ centroids.mT).mT.topk(width, -1).indices
    keys, values = _gather(k, others), _gather(v, others)
    scores = _gather(q, members) @ keys.mT / math.sqrt(q.shape[-1])
    lowest = torch.finfo(scores.dtype).min
    when, whom = members[..., :, None], others[..., None, :]
    if mask is not None:
        pairs = _gather_mask(mask, members)[..., :, None] & _gather_mask(mask, others)[..., None, :]
        scores = scores.masked_fill(~pairs, lowest)
    if causal:
        scores = scores.masked_fill(when < whom, lowest)
    if shared:
        scores = scores.masked_fill(when == whom, _SELF)
    if memory is not None:
        more_k, more_v = (part.expand(q.shape[0], *part.shape) for part in memory)
        scores = torch.cat((_gather(q, members) @ more_k.mT / math.sqrt(q.shape[-1]), scores), -1)
        values = torch.cat((more_v, values), 3)
    mixed = scores.softmax(-1) @ values
    tokens = unit if shared else torch.cat((unit, unit_k), 2)
    return RoutingOutput(
        _scatter_mean(mixed, members, q.shape[2], 1e-5), members, others, commitment_loss((tokens,), centroids)
    )


def _gather(x: Tensor, members: Tensor) -> Tensor:
    """Tokens of each cluster [B,H,K,w,d] of x [B,H,T,d]."""
    B, H, K, w = members.shape
    return x.take_along_dim(members.view(B, H, K * w, 1), 2).view(B, H, K, w, -1)


def _gather_mask(mask: Tensor, members: Tensor) -> Tensor:
    """Mask [B,T] of the members [B,H,K,w]."""
    B, H, K, w = members.shape
    return mask[:, None].expand(B, H, -1).gather(2, members.view(B, H, K * w)).view(members.shape)


def _scatter_mean(mixed: Tensor, members: Tensor, length: int, eps: float) -> Tensor:
    """Scatter cluster outputs back to tokens [B,H,T,d]: nearly the mean over a token's clusters; zero without any."""
    B, H, _, _, d = mixed.shape
    where = members.flatten(2)
    total = mixed.new_zeros(B, H, length, d).scatter_add(2, where[..., None].expand(-1, -1, -1, d), mixed.flatten(2, 3))
    count = mixed.new_zeros(B, H, length).scatter_add(2, where, torch.ones_like(where, dtype=mixed.dtype))
    return total / (count + eps)[..., None]


def commitment_loss(tokens: tuple[Tensor, ...], centroids: Tensor) -> Tensor:
    """Mean squared distance of all tokens from their nearest centroids, which stay where they are."""
    x = torch.cat(tokens, 2)
    return COMMITMENT * (x - _centroids_of(nearest_cluster(x, centroids), centroids.detach())).square().mean()


def _centroids_of(clusters: Tensor, centroids: Tensor) -> Tensor:
    """The centroid of each token [B,H,T,d]."""
    return centroids.expand(clusters.shape[0], *centroids.shape).take_along_dim(clusters[..., None], 2)


@dataclass(eq=False, slots=True)
class RoutingState:
    """State of `causal` mode token by token: a ring buffer of the last w keys and values of every cluster.

    Args:
        centroids: [H,K,d].
        window: w.
        shared: Keys are the normalised queries. If not, a token still belongs to the cluster of its query.
        ring: Keys and values [2,B,H,K,w,d]; None before the first token.
        count: Tokens that each cluster has read [B,H,K]; None before the first token.
    """

    centroids: Tensor
    window: int
    shared: bool = field(default=True, kw_only=True)
    ring: Tensor | None = field(default=None, kw_only=True)
    count: Tensor | None = field(default=None, kw_only=True)

    def step(self, q: Tensor, k: Tensor, v: Tensor, rotate: Rotate | None = None) -> Tensor:
        """The next token: q, k, v [B,H,1,d] → [B,H,1,d].

        Args:
            q: The query, before normalisation.
            k: The key, before normalisation; ignored where keys are the normalised queries.
            v: The value.
            rotate: Positions, applied behind the choice of the cluster, so that clusters depend on content alone.
        """
        query = normalise(q)
        key = query if self.shared else normalise(k)
        where = nearest_cluster(query, self.centroids)[..., 0]
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        B, H, _, d = q.shape
        ring, count = self._buffers(B, H, d, q)
        rows = torch.arange(B, device=q.device)[:, None], torch.arange(H, device=q.device), where
        slot = count[rows] % self.window
        ring[0][(*rows, slot)], ring[1][(*rows, slot)] = key[:, :, 0], v[:, :, 0]
        count[rows] += 1
        held = torch.arange(self.window, device=q.device) < count[rows][..., None]
        scores = (ring[0][rows] @ query.mT)[..., 0] / math.sqrt(d)
        weights = scores.masked_fill(~held, -torch.inf).softmax(-1)
        return weights[:, :, None] @ ring[1][rows]

    @property
    def nbytes(self) -> int:
        """Bytes of the ring buffer."""
        return 0 if self.ring is None else self.ring.nbytes

    def fork(self) -> Self:
        """An independent copy."""
        ring, count = (None if buffer is None else buffer.clone() for buffer in (self.ring, self.count))
        return replace(self, ring=ring, count=count)

    @property
    def occupancy(self) -> Tensor:
        """Tokens that each cluster has read [B,H,K]."""
        return self.centroids.new_zeros(0, dtype=torch.long) if self.count is None else self.count

    def _buffers(self, B: int, H: int, d: int, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.ring is None or self.count is None:
            K = self.centroids.shape[1]
            self.ring = like.new_zeros(2, B, H, K, self.window, d)
            self.count = torch.zeros(B, H, K, dtype=torch.long, device=like.device)
        return self.ring, self.count


@dataclass(frozen=True, slots=True)
class CentroidUpdate:
    """Centroids after a batch.

    Attributes:
        distances: Similarity of each token to each cluster [B,H,T,K].
        loss: As in `RoutingOutput`.
        batch_means: Directions of the batch's clusters [H,K,d]; an empty cluster keeps its old mean.
        centroids: The new ones [H,K,d].
    """

    distances: Tensor
    loss: Tensor
    batch_means: Tensor
    centroids: Tensor


def update_centroids(x: Tensor, centroids: Tensor, decay: float = 0.999) -> CentroidUpdate:
    """The port's rule: a moving average of the clusters' directions, which is not normalised again.

    Args:
        x: Tokens [B,H,T,d].
        centroids: [H,K,d].
        decay: Share that stays.
    """
    unit = functional.normalize(x, dim=-1)
    distances = unit @ centroids.mT
    chosen = distances.argmax(-1)
    K = centroids.shape[1]
    member = functional.one_hot(chosen, K).to(x.dtype)
    sums = torch.einsum("bhtk,bhtd->hkd", member, unit)
    empty = member.sum((0, 2)) == 0
    means = torch.where(empty[..., None], centroids, functional.normalize(sums, dim=-1))
    loss = commitment_loss((unit,), centroids)
    return CentroidUpdate(distances, loss, means, decay * centroids + (1 - decay) * means)
