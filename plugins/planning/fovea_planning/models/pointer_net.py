"""Pointer networks: an order of points, each step pointing at one of them.

Knows the maths of the paper (Vinyals et al., 2015) in two forms of encoder. Knows nothing about hulls or tours: what
an order means is the planner's. `solvers.pointer_inference` decodes, without torch. Slot 0 is the end, slots 1..n are
the points.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from fovea.errors import InvalidOption
from fovea_planning.solvers.pointer_inference import PointerInference
from shared.registry import builder

Encoder = Literal["lstm", "attn"]

State = tuple[Tensor, Tensor]


@builder("pointer-net")
class PointerNet(nn.Module):
    """Scores every slot at every step: u_j = v · tanh(W1 e_j + W2 d_i), of width h, without glimpse and without bias.

    The encoder `lstm` is the paper's: it reads the points in their order, and its decoder is fed raw coordinates.
    `attn`, of so many self-attention layers, knows no order: without any position, renumbering the points renumbers the
    answer; its decoder is fed what the encoder made of a point.
    """

    def __init__(self, hidden: int = 64, encoder: Encoder = "lstm", layers: int = 3) -> None:
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
        """Logits (b, t, n + 1) over points (b, n, 2) when the true slots (b, t) are followed (teacher forcing)."""
        encoded, fed, state = self.read(points)
        chosen = fed.gather(1, targets[:, :-1, None].expand(-1, -1, fed.shape[2]))
        decoded, _ = self.dec(torch.cat((self.go.expand(len(points), 1, -1), chosen), 1), state)
        return self.point(encoded, decoded)

    def decode(self, points: Tensor, steps: int, visit_once: bool = False) -> tuple[Tensor, Tensor]:
        """The likeliest slots (b, t) of t steps over points (b, n, 2), and all log-probabilities (b, t, n + 1).

        `visit_once` bars slots that were chosen, and the end, with -inf.
        """
        slots, told = self.build_inference().decode(points.numpy(force=True), steps, visit_once=visit_once)
        return torch.from_numpy(slots), torch.from_numpy(told)

    def beam(self, points: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Orders of all points as slots (b, w, n), best first, and their log-probabilities (b, w), by beam search."""
        slots, scores = self.build_inference().beam(points.numpy(force=True), width)
        return torch.from_numpy(slots), torch.from_numpy(scores)

    def build_inference(self) -> PointerInference:
        """Build the same network in numpy, as it is served."""
        return PointerInference({key: value.numpy(force=True) for key, value in self.state_dict().items()})

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


@builder("fovea-pointer-hull")
def fovea_pointer_hull(hidden: int = 64, layers: int = 3) -> PointerNet:
    """The planner's network for hulls."""
    return PointerNet(hidden, "attn", layers)


@builder("fovea-pointer-tour")
def fovea_pointer_tour(hidden: int = 64, layers: int = 3) -> PointerNet:
    """The planner's network for tours."""
    return PointerNet(hidden, "attn", layers)
