"""OAT: which object on a shelf is looked at next, from pictures of all objects and of the one that is sought.

Knows the maths of the paper and the layout of the published network, key for key. Knows nothing of photographs:
inputs are crops in 0..1 on a grid of rows and columns, outputs are logits over the objects.

With n objects, index n is the end of a scanpath (attention to the token of the target) and n + 1 is padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from fovea.errors import InvalidOption
from fovea_planning.models.positions import fitted_positions, sinusoid
from fovea_planning.models.transformer import TransformerDecoder, TransformerEncoder
from shared.registry import builder

LONGEST = 5000
"""Places of the one-dimensional encoding, as published."""


class ObjectAttention(nn.Module):
    """OAT (ECCV 2024): a transformer over objects, read out by attention from each step to each object.

    The network serves any grid; rows and columns of `grid` only size its unused `generator`. `table` are position rows
    (k, ceil(model / 6)): one for each row or column of a grid, k >= 3. Half of a token's width `model` is the crop
    (height, width in pixels), half the position. Encoder and decoder have `layers` each, of `feedforward` width inside.
    """

    idle = ("generator.", "LinearEmbedding.", "onedpositional_encoding.")
    renamed: ClassVar[dict[str, str]] = {"model.": ""}
    """Prefix of every key of a published checkpoint, from its trainer."""
    apart: ClassVar[str] = "position_table"
    """Argument of the builder that belongs to the weights and is in no checkpoint."""
    table: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        table: np.ndarray,
        model: int,
        layers: int,
        heads: int,
        feedforward: int,
        crop: tuple[int, int],
    ) -> None:
        super().__init__()
        self.grid, self.crop, self.width = grid, crop, model // 2
        self.transformer_encoder = TransformerEncoder(model, layers, heads, feedforward)
        self.transformer_decoder = TransformerDecoder(model, layers, heads, feedforward)
        self.generator = nn.Linear(model, grid[0] * grid[1] + 2)
        self.onedpositional_encoding = _Steps(model)
        self.cnn_embedding = _CropEncoder(crop, self.width)
        self.LinearEmbedding = nn.Linear(3, self.width)
        self.cross_attentions = nn.ModuleList(_ReadHead(model) for _ in range(2))
        self.readout = nn.Linear(2, 1)
        padded = np.concatenate((table, np.zeros((4, table.shape[1]))))
        self.register_buffer("table", torch.from_numpy(padded.astype(np.float32)), persistent=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    @property
    def places(self) -> int:
        """Most rows or columns of a grid that the position table has."""
        return self.table.shape[0] - 4

    def extend(self, places: int) -> ObjectAttention:
        """The same network with position rows for grids of so many rows and columns; the rows it has stay."""
        if places > self.places:
            rows = fitted_positions(places, self.table.shape[1], given=self.table[:-4].numpy())
            self.table = torch.from_numpy(np.concatenate((rows, np.zeros((4, rows.shape[1])))).astype(np.float32))
        return self

    def forward(self, crops: Tensor, target: int, fixations: Tensor) -> Tensor:
        """Logits (t, n + 2) of each step of one scanpath on the network's own grid.

        Crops (n, 3, h, w) are in 0..1, row by row; `target` is the one that is sought, fixations (t - 1,) are the
        objects fixated so far.
        """
        count = self.grid[0] * self.grid[1]
        if tuple(crops.shape) != (count, 3, *self.crop):
            raise InvalidOption(f"crops must be {(count, 3, *self.crop)}, not {tuple(crops.shape)}.", field="crops")
        cells = grid_cells(self.grid).to(crops.device)
        sought = torch.tensor([target], device=crops.device)
        return self.logits(crops[None], cells[None], sought, fixations[None, None])[0, 0]

    @torch.no_grad()
    def scanpath(self, crops: Tensor, target: int, steps: int = 12) -> list[int]:
        """The likeliest object at each step; n, the end, is the last entry where it is reached."""
        end, path = len(crops), list[int]()
        while len(path) < steps and end not in path:
            logits = self(crops, target, torch.tensor(path, dtype=torch.long))[-1, : end + 1]
            path.append(int(logits[:end].argmax() if not path else logits.argmax()))
        return path

    def logits(self, crops: Tensor, cells: Tensor, target: Tensor, fixations: Tensor) -> Tensor:
        """Logits (b, s, t, n + 2) of several scanpaths on several shelves: what is trained and exported.

        Crops (b, n, 3, h, w) are in 0..1, cells (b, n, 2) their row and column, targets (b,) the objects that are
        sought, and fixations (b, s, t - 1) the objects fixated so far. Whatever is out of range counts as the nearest
        in it.
        """
        features = self.cnn_embedding(crops.flatten(0, 1)).reshape(crops.shape[0], -1, self.width)
        return self.logits_from_features(features, cells, target, fixations)

    def logits_from_features(self, features: Tensor, cells: Tensor, target: Tensor, fixations: Tensor) -> Tensor:
        """`logits` from crop features (b, n, d/2) instead of crops."""
        count = features.shape[1]
        target, cells = target.clamp(0, count - 1), cells.clamp(0, self.places - 1)
        index = target[:, None, None]
        sought = torch.arange(count, device=features.device)[None] == target[:, None]
        objects = torch.cat((features, self._position(cells, torch.zeros_like(sought))), 2)
        flagged = torch.cat((features, self._position(cells, sought)), 2)
        goal = flagged.gather(1, index.expand(-1, 1, flagged.shape[2]))
        memory = self.transformer_encoder(torch.cat((objects, goal), 1))
        return self._read(self._steps(flagged, cells, fixations), memory)

    def _steps(self, flagged: Tensor, cells: Tensor, fixations: Tensor) -> Tensor:
        """Decoder tokens (b, s, t, d): the middle of the shelf, then the objects that were fixated."""
        (b, n, d), s = flagged.shape, fixations.shape[1]
        middle = (cells.amax(1, keepdim=True) + 1) // 2
        blank = self.cnn_embedding(flagged.new_ones(1, 3, *self.crop))[None].expand(b, 1, -1)
        begin = torch.cat((blank, self._position(middle, torch.zeros_like(middle[..., 0], dtype=torch.bool))), 2)
        chosen = fixations.clamp(0, n - 1).reshape(b, -1, 1).expand(-1, -1, d)
        fixated = flagged.gather(1, chosen).reshape(b, s, -1, d)
        steps = torch.cat((begin[:, None].expand(-1, s, -1, -1), fixated), 2)
        return cast("Tensor", self.onedpositional_encoding(steps))

    def _read(self, steps: Tensor, memory: Tensor) -> Tensor:
        """Decode (b, s, t, d) against memory (b, n + 1, d), and read how each step attends to each object."""
        (b, s, t, d), objects = steps.shape, memory.shape[1]
        memory = memory[:, None].expand(-1, s, -1, -1).reshape(b * s, objects, d)
        hidden = self.transformer_decoder(steps.reshape(b * s, t, d), memory)
        scores = torch.stack([head(memory, hidden) for head in self.cross_attentions], 3)
        scores = torch.cat((scores, scores.new_zeros(1, 1, 1, 1).expand(b * s, t, 1, 2)), 2) / math.sqrt(d)
        return cast("Tensor", self.readout(scores)).reshape(b, s, t, objects + 1)

    def _position(self, cells: Tensor, flag: Tensor) -> Tensor:
        """Position half (…, d/2) of cells (…, 2) as row and column; the flag (…) marks the target."""
        rows = (self.table[cells[..., 0]], self.table[cells[..., 1]], self.table[flag.long()])
        return torch.cat(rows, -1)[..., : self.width]


class _CropEncoder(nn.Module):
    """A crop (m, 3, h, w) as a vector (m, d/2)."""

    def __init__(self, crop: tuple[int, int], width: int) -> None:
        super().__init__()
        self.cnn1 = nn.Sequential(nn.Conv2d(3, 16, 5), nn.ReLU(), nn.MaxPool2d(5))
        self.cnn2 = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(3))
        height, left = (((side - 4) // 5 - 2) // 3 for side in crop)
        self.fc = nn.Linear(32 * height * left, width)

    def forward(self, crops: Tensor) -> Tensor:
        """The vector."""
        return cast("Tensor", self.fc(self.cnn2(self.cnn1(crops)).flatten(1)))


class _Steps(nn.Module):
    """Adds the sinusoid of its place to each step (b, s, t, d)."""

    pos_embedding: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("pos_embedding", sinusoid(LONGEST, width)[:, None])

    def forward(self, steps: Tensor) -> Tensor:
        """The steps with their places."""
        return steps + self.pos_embedding[: steps.shape[2], 0]


class _ReadHead(nn.Module):
    """One head of the read-out: (b, n, d) and (b, t, d) → (b, t, n)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.decode_fc = nn.Linear(width, width)
        self.encode_fc = nn.Linear(width, width)

    def forward(self, memory: Tensor, hidden: Tensor) -> Tensor:
        """How much each step attends to each object."""
        return cast("Tensor", self.decode_fc(hidden)) @ cast("Tensor", self.encode_fc(memory)).transpose(1, 2)


def grid_cells(grid: tuple[int, int]) -> Tensor:
    """Row and column (n, 2) of the objects of a full grid, row by row."""
    return torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))


@builder("oat", layouts=({}, {"grid": (2, 11)}, {"grid": (6, 14)}))
def oat(
    grid: tuple[int, int] = (3, 9),
    position_table: np.ndarray | Sequence[Sequence[float]] | None = None,
    model: int = 512,
    layers: int = 4,
    heads: int = 4,
    feedforward: int = 512,
    crop: tuple[int, int] = (150, 93),
) -> ObjectAttention:
    """OAT with random weights; the defaults are the published layout for the yogurt shelf, of three.

    Position rows are fitted where none are given.
    """
    width = -(-(model // 2) // 3)
    table = fitted_positions(max(*grid, 3), width) if position_table is None else np.asarray(position_table, float)
    if table.ndim != 2 or table.shape[1] != width or len(table) < max(*grid, 3):
        detail = f"position_table must have {max(*grid, 3)} rows or more of {width}, not {table.shape}."
        raise InvalidOption(detail, field="position_table")
    return ObjectAttention((grid[0], grid[1]), table, model, layers, heads, feedforward, (crop[0], crop[1]))
