"""Pointer networks: an order of points, each step pointing at one of them.

Knows the maths of the paper (Vinyals et al., 2015) in two forms of encoder. Knows nothing about hulls or tours: what
an order means is the planner's. Slot 0 is the end, slots 1..n are the points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from shared.errors import InvalidOption
from shared.registry import builder

Encoder = Literal["lstm", "attn"]

State = tuple[Tensor, Tensor]
Fits = Callable[[Tensor, Tensor], Tensor]
"""Slots chosen so far (b, t), all allowed slots (b, n + 1) → those that may follow."""


class PointerNet(nn.Module):
    """Scores every slot at every step: u_j = v · tanh(W1 e_j + W2 d_i), without glimpse and without bias.

    Args:
        hidden: Width h.
        encoder: `lstm` is the paper's: it reads the points in their order, and its decoder is fed raw coordinates.
            `attn` knows no order: self-attention without any position, so that renumbering the points renumbers the
            answer; its decoder is fed what the encoder made of a point.
        layers: Self-attention layers of `attn`.
    """

    def __init__(self, hidden: int, encoder: Encoder = "lstm", layers: int = 3) -> None:
        super().__init__()
        self.hidden, self.encoder = hidden, encoder
        if encoder == "lstm":
            self.go, self.end_in = nn.Parameter(torch.empty(2)), nn.Parameter(torch.empty(2))
            self.enc = nn.LSTM(2, hidden, batch_first=True)
        else:
            self.go, self.end_in = nn.Parameter(torch.empty(hidden)), nn.Parameter(torch.empty(hidden))
            self.embed = nn.Linear(2, hidden)
            layer = nn.TransformerEncoderLayer(
                hidden, 4, 4 * hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(hidden), enable_nested_tensor=False)
        self.dec = nn.LSTM(2 if encoder == "lstm" else hidden, hidden, batch_first=True)
        self.W1, self.W2 = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))
        self.v = nn.Linear(hidden, 1, bias=False)
        for parameter in (self.go, self.end_in):
            nn.init.uniform_(parameter, -0.08, 0.08)

    def forward(self, points: Tensor, targets: Tensor) -> Tensor:
        """Logits (b, t, n + 1) of each step when the true order is followed (teacher forcing).

        Args:
            points: Coordinates (b, n, 2).
            targets: True slots (b, t).
        """
        encoded, fed, state = self.read(points)
        chosen = fed.gather(1, targets[:, :-1, None].expand(-1, -1, fed.shape[2]))
        decoded, _ = self.dec(torch.cat((self.go.expand(len(points), 1, -1), chosen), 1), state)
        return self.point(encoded, decoded)

    def read(self, points: Tensor) -> tuple[Tensor, Tensor, State]:
        """Encode points: W1 e (b, n + 1, h), what the decoder is fed of each slot, and its first state."""
        if points.ndim != 3 or points.shape[2] != 2:
            raise InvalidOption(f"points must be (batch, n, 2), not {tuple(points.shape)}.", field="points")
        end = self.end_in.expand(len(points), 1, -1)
        if self.encoder == "lstm":
            fed = torch.cat((end, points), 1)
            encoded, state = self.enc(fed)
            return self.W1(encoded), fed, state
        encoded = self.layers(torch.cat((end, self.embed(points)), 1))
        mean = encoded.mean(1)[None]
        return self.W1(encoded), encoded, (mean, torch.zeros_like(mean))

    def point(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """Logits (b, t, n + 1) from W1 e (b, n + 1, h) and decoder states (b, t, h)."""
        logits: Tensor = self.v(torch.tanh(encoded[:, None] + self.W2(decoded)[:, :, None]))[..., 0]
        return logits

    @torch.no_grad()
    def decode(
        self, points: Tensor, steps: int, *, visit_once: bool = False, fits: Fits | None = None
    ) -> tuple[Tensor, Tensor]:
        """The likeliest slot at each step, and all log-probabilities; barred slots are -inf.

        Args:
            points: Coordinates (b, n, 2).
            steps: Steps t to take.
            visit_once: Bar slots that were chosen, and the end.
            fits: Bars further slots by what was chosen so far. Where it bars all, the end stays.

        Returns:
            Slots (b, t) and log-probabilities (b, t, n + 1).
        """
        encoded, fed, state = self.read(points)
        count, rows = encoded.shape[1], torch.arange(len(points), device=points.device)
        given = self.go.expand(len(points), 1, -1)
        free = torch.ones(len(points), count, dtype=torch.bool, device=points.device)
        free[:, 0] = not visit_once
        slots, log_probabilities = points.new_zeros(len(points), 0, dtype=torch.long), []
        for _ in range(steps):
            decoded, state = self.dec(given, state)
            allowed = free if fits is None else _or_end(fits(slots, free))
            logits = self.point(encoded, decoded)[:, 0].masked_fill(~allowed, -torch.inf)
            chosen = logits.argmax(1)
            log_probabilities.append(logits.log_softmax(1))
            slots = torch.cat((slots, chosen[:, None]), 1)
            given = fed[rows, chosen][:, None]
            if visit_once:
                free = free.clone()
                free[rows, chosen] = False
        return slots, torch.stack(log_probabilities, 1)

    @torch.no_grad()
    def beam(self, points: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Orders of all points with the largest probability, by beam search that visits each point once.

        Visited slots and the end are barred before the softmax, so probabilities are over what is left.

        Returns:
            Slots (b, w, n), best first, and sums of log-probabilities (b, w).
        """
        (batch, count), width = points.shape[:2], min(width, 10**6)
        encoded, fed, state = self.read(points)
        rows = torch.arange(batch, device=points.device)[:, None]
        given, scores = self.go.expand(batch, 1, 1, -1), points.new_zeros(batch, 1)
        free = torch.ones(batch, 1, count + 1, dtype=torch.bool, device=points.device)
        free[..., 0] = False
        slots = points.new_zeros(batch, 1, 0, dtype=torch.long)
        hidden = (state[0][0][:, None], state[1][0][:, None])  # (b, w, h) each
        for _ in range(count):
            w = slots.shape[1]
            flat = [part.reshape(1, batch * w, -1).contiguous() for part in hidden]
            decoded, after = self.dec(given.reshape(batch * w, 1, -1), (flat[0], flat[1]))
            logits = self.point(encoded, decoded.reshape(batch, w, -1)).masked_fill(~free, -torch.inf)
            total = (scores[:, :, None] + logits.log_softmax(2)).reshape(batch, -1)
            scores, best = total.topk(min(width, int((total > -torch.inf).sum(1).min())), dim=1)
            parent, chosen = best // (count + 1), best % (count + 1)
            slots = torch.cat((slots[rows, parent], chosen[..., None]), 2)
            free = free[rows, parent].scatter(2, chosen[..., None], value=False)
            given = fed[rows, chosen]
            hidden = (after[0].reshape(batch, w, -1)[rows, parent], after[1].reshape(batch, w, -1)[rows, parent])
        return slots, scores


def _or_end(allowed: Tensor) -> Tensor:
    """The same, with the end where nothing else is allowed."""
    stuck = ~allowed.any(1)
    allowed = allowed.clone()
    allowed[stuck, 0] = True
    return allowed


@builder("pointer-net")
def pointer_net(hidden: int = 64, encoder: Encoder = "lstm", layers: int = 3) -> PointerNet:
    """A pointer network with random weights."""
    return PointerNet(hidden, encoder, layers)


@builder("fovea-pointer-hull")
def fovea_pointer_hull(hidden: int = 64, layers: int = 3) -> PointerNet:
    """The planner's network for hulls."""
    return PointerNet(hidden, "attn", layers)


@builder("fovea-pointer-tour")
def fovea_pointer_tour(hidden: int = 64, layers: int = 3) -> PointerNet:
    """The planner's network for tours."""
    return PointerNet(hidden, "attn", layers)
