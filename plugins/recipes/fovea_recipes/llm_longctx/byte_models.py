"""Recipes of byte models on Python's own text: the causal routing transformer with its twin, deconstructed hybrids.

The twin of the routing model has local heads only, at the same number of steps. Knows recipes; text and bits are
`fovea_recipes.training.byte_recipe`'s.
"""

from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fovea_memory.mixers.deconstructed.mixers import Variant
from fovea_memory.mixers.routing.networks import ClusterAssignment, RoutingLM
from fovea_recipes.training.byte_recipe import BYTES, ByteRecipe, bits_of, bits_of_windows
from fovea_recipes.training.recipe import Batch, Schedule, language_schedule


class RoutingBytesRecipe(
    ByteRecipe, name="routing-bytes", weights="fovea-routing-bytes", builds="routing-lm", dtype="int8"
):
    """`fovea-routing-bytes`: half of the last layer's heads route; with `routing=0` the twin, all heads local.

    Only the last layer routes, as in the paper's model of books: so small a network needs its lower heads for what is
    near. Routing heads have keys of their own. Where keys are queries, as published, a quarter to a half of the
    attention goes to the token itself, a token can't look for what followed a text like its own, and the twin has more
    parameters.
    """

    schedule: Schedule = language_schedule(
        steps=2400, batch=8, rate=3e-3, floor=3e-5, warm_up=100, decay=0.01, ema=0.98, validate_every=200
    )
    context: int = 512
    width: int = 128
    layers: int = 4
    heads: int = 4
    routing: int = Field(2, ge=0, description="Heads that route, in layers that do; 0 is the twin.")
    first: int = Field(3, ge=0, description="The first layer that routes.")
    window: int = 64
    local_window: int = 64
    centroid_decay: float = 0.99
    shared: bool = Field(default=False, description="Keys of routing heads are their queries.")

    def config(self) -> dict[str, Any]:
        local = {"heads": self.heads, "local_heads": self.heads - self.routing}
        sizes = {"width": self.width, "layers": self.layers, **local}
        windows = {"window": self.window, "local_window": self.local_window, "context": self.context}
        form = {"mode": "causal", "shared": self.shared, "first": self.first}
        return {"vocab": BYTES, **sizes, "head_dim": self.width // self.heads, **windows, **form}

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        net, ids = cast("RoutingLM", network), batch["ids"]
        logits, committed, chosen = net.forward_with_assignments(ids[:, :-1])
        self._follow(net, chosen)
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) + committed

    def measure(self, network: nn.Module) -> dict[str, float]:
        net, held_out = cast("RoutingLM", network), self.test_windows()
        session = net.session(8)
        stream = session.feed(held_out[:8, :-1])
        found = self.average(
            bits_teacher_forced=bits_of_windows(net, held_out),
            bits_incremental=bits_of(stream, held_out[:8, 1:]),
            bits_teacher_forced_same=bits_of_windows(net, held_out[:8]),
        )
        if self.routing:
            filled = torch.stack(session.occupancy).double() / self.context
            found |= {"occupancy_min": float(filled.min()), "occupancy_max": float(filled.max())}
        return found

    @torch.no_grad()
    def _follow(self, net: RoutingLM, chosen: list[ClusterAssignment | None]) -> None:
        """Centroids move towards the mean of the tokens that are nearest to them."""
        for choice, (_, attention, _, _) in zip(chosen, net.blocks, strict=True):
            if choice is not None:
                means = attention.means
                tokens, of = choice.units.transpose(0, 1).flatten(1, 2), choice.clusters.transpose(0, 1).flatten(1, 2)
                member = functional.one_hot(of, means.shape[1]).to(means.dtype)
                count = member.sum(1)[..., None]
                moved = means.lerp(member.mT @ tokens / count.clamp(min=1), 1 - self.centroid_decay)
                means.copy_(torch.where(count > 0, moved, _restart_point(tokens, of, count, means)))


def _restart_point(tokens: Tensor, of: Tensor, count: Tensor, means: Tensor) -> Tensor:
    """Where an empty cluster begins anew, per head [H,1,d]: at a member of the fullest, as long as centroids are.

    Without it most clusters of the upper layers are soon empty, and the others hold more than their window.
    """
    fullest = count.argmax(1)  # [H,1]
    last = ((of == fullest) * torch.arange(of.shape[1], device=of.device)).argmax(1)
    token = tokens[torch.arange(len(tokens), device=of.device), last]
    length: Tensor = means.norm(dim=-1).mean(-1, keepdim=True)
    return (functional.normalize(token, dim=-1) * length)[:, None]


class HybridBytesRecipe(
    ByteRecipe, name="hybrid-bytes", weights="fovea-hybrid-nonapproximate", builds="deconstructed-lm", dtype="int8"
):
    """`fovea-hybrid-nonapproximate`: every other layer's scores depend on the key alone."""

    schedule: Schedule = language_schedule(
        steps=2400, batch=16, rate=3e-3, floor=3e-5, warm_up=100, decay=0.01, ema=0.98, validate_every=200
    )
    width: int = 96
    layers: int = 4
    heads: int = 4
    mixer: Variant = "nonapproximate"
    layout: Literal["uniform", "hybrid"] = "hybrid"

    def config(self) -> dict[str, Any]:
        sizes = {"width": self.width, "layers": self.layers, "heads": self.heads, "context": self.context}
        return {"vocab": BYTES, **sizes, "mixer": self.mixer, "layout": self.layout}

    def measure(self, network: nn.Module) -> dict[str, float]:
        held_out = self.test_windows()
        session = cast("Any", network).session(1)
        session.feed(held_out[:1, :-1])
        bits = {"bits_per_byte": bits_of_windows(network, held_out)}
        if self.layout == "hybrid":
            bits["bits_skip"] = bits_of_windows(network, held_out, skip=True)
        return self.average(**bits) | {"state_bytes": float(sum(session.nbytes))}
