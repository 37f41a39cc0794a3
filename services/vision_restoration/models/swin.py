"""RRFormer's transformer body: windows of 8×8 that attend within themselves, every other block shifted by half.

Knows the layout of SwinIR's body (Liang et al., 2021) as RRFormer's checkpoints carry it. The map's shift mask follows
from its size and is made once per call; the masks in checkpoints are for one training size and are kept for the layout.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = 8
"""Side of a window, in pixels of the half-resolution map."""

SHIFT = WINDOW // 2
_OFFICIAL_MAP = 64
_BLOCKED = -100.0


class WindowAttention(nn.Module):
    """Multi-head attention of c channels within one window, with a learned bias per relative position.

    With `buffers` the state dict holds the derived index, as official checkpoints do.
    """

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, *, buffers: bool) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _relative_positions(), persistent=buffers)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within windows (n·m, 64, c); `mask` (m, 64, 64) is added to the scores of each picture's m windows."""
        count, tokens, channels = windows.shape
        qkv = self.qkv(windows).reshape(count, tokens, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        scores = (q * (channels // self.heads) ** -0.5) @ k.transpose(-2, -1)
        scores = scores + bias.view(tokens, tokens, self.heads).permute(2, 0, 1)
        if mask is not None:
            shape = (-1, mask.shape[0], self.heads, tokens, tokens)
            scores = (scores.view(shape) + mask[None, :, None]).view(-1, self.heads, tokens, tokens)
        mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(count, tokens, channels)
        return cast("Tensor", self.proj(mixed))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, token by token."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(…, c) → (…, c)."""
        return cast("Tensor", self.fc2(F.gelu(self.fc1(x))))


class SwinBlock(nn.Module):
    """Pre-norm attention and mlp, each added to its input.

    Args:
        channels: c.
        heads: Attention heads.
        shift: 0, or by how many pixels the map is rolled before it is cut into windows.
        drop: Share of samples that skip a branch in training (stochastic depth).
        buffers: Whether the state dict holds what official checkpoints derive.
    """

    attn_mask: Tensor

    def __init__(self, channels: int, heads: int, *, shift: int, drop: float, buffers: bool) -> None:
        super().__init__()
        self.shift, self.drop = shift, drop
        if shift and buffers:
            self.register_buffer("attn_mask", shift_mask(_OFFICIAL_MAP, _OFFICIAL_MAP))
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, buffers=buffers)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 2 * channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Tokens (n, h, w, c) → the same; `mask` is that of a shifted map of this size."""
        x = x + self._kept(self._attended(self.norm1(x), mask if self.shift else None))
        return x + self._kept(self.mlp(self.norm2(x)))

    def _attended(self, x: Tensor, mask: Tensor | None) -> Tensor:
        n, height, width, channels = x.shape
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        grid = (n, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
        windows = x.view(grid).transpose(2, 3).reshape(-1, WINDOW * WINDOW, channels)
        found = self.attn(windows, mask)
        swapped = found.view(n, height // WINDOW, width // WINDOW, WINDOW, WINDOW, channels)
        x = swapped.transpose(2, 3).reshape(n, height, width, channels)
        return x.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else x

    def _kept(self, branch: Tensor) -> Tensor:
        """The branch, in training dropped for some samples and enlarged for the others."""
        if not self.training or self.drop == 0:
            return branch
        keep = 1 - self.drop
        return branch * (branch.new_empty(len(branch), 1, 1, 1).bernoulli_(keep) / keep)


class BlockList(nn.Module):
    """The blocks of one group; a module of its own because checkpoints name it."""

    def __init__(self, blocks: list[SwinBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class Group(nn.Module):
    """Blocks, a convolution, and the group's input added."""

    def __init__(self, channels: int, blocks: list[SwinBlock]) -> None:
        super().__init__()
        self.residual_group = BlockList(blocks)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Tokens (n, h, w, c) → the same."""
        y = x
        for block in self.residual_group.blocks:
            y = block(y, mask)
        return cast("Tensor", self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)) + x


class PatchEmbed(nn.Module):
    """The norm of the tokens before the first group; patches are single pixels, so nothing is embedded."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)


class SwinBody(nn.Module):
    """All groups, between a norm before and a norm and a convolution after.

    Args:
        channels: c, of the half-resolution map.
        groups: Groups.
        blocks: Blocks in each; every second one is shifted.
        heads: Attention heads per block.
        drop: Stochastic depth of the last block; it grows from zero.
        buffers: Whether the state dict holds the buffers that official checkpoints do.
    """

    def __init__(
        self, channels: int, groups: int, blocks: int, heads: int, *, drop: float = 0.1, buffers: bool = True
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels)
        last = max(1, groups * blocks - 1)
        drops = [[drop * (group * blocks + index) / last for index in range(blocks)] for group in range(groups)]
        self.layers = nn.ModuleList(
            Group(
                channels,
                [
                    SwinBlock(channels, heads, shift=SHIFT * (index % 2), drop=rate, buffers=buffers)
                    for index, rate in enumerate(rates)
                ],
            )
            for rates in drops
        )
        self.norm = nn.LayerNorm(channels)
        self.conv_after_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_last = nn.Conv2d(channels, 3, 3, padding=1)  # in checkpoints, and in no use

    def features(self, x: Tensor) -> Tensor:
        """Normed tokens (n, c, h, w) after the last group; h and w must be multiples of 8."""
        mask = shift_mask(x.shape[2], x.shape[3], like=x)
        tokens = self.patch_embed.norm(x.permute(0, 2, 3, 1))
        for group in self.layers:
            tokens = group(tokens, mask)
        return cast("Tensor", self.norm(tokens)).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → the same size, any h and w; mirrored to multiples of the window on the way."""
        height, width = x.shape[2:]
        down, right = -height % WINDOW, -width % WINDOW
        if down or right:
            x = F.pad(x, (0, right, 0, down), mode="reflect")
        whole: Tensor = self.conv_after_body(self.features(x)) + x
        return whole[..., :height, :width]


def shift_mask(height: int, width: int, like: Tensor | None = None) -> Tensor:
    """Mask between parts that only the roll made neighbours: (windows, 64, 64), 0 or -100.

    The regions of an axis of n pixels are [0, n-8), [n-8, n-4) and [n-4, n).
    """
    device = None if like is None else like.device
    rows, columns = (_regions(length, device) for length in (height, width))
    regions = rows[:, None] * 3 + columns
    grid = (height // WINDOW, WINDOW, width // WINDOW, WINDOW)
    windows = regions.view(grid).transpose(1, 2).reshape(-1, WINDOW * WINDOW)
    return torch.where(windows[:, None, :] != windows[:, :, None], _BLOCKED, 0.0)


def _regions(length: int, device: torch.device | None) -> Tensor:
    at = torch.arange(length, device=device)
    return (at >= length - WINDOW).long() + (at >= length - SHIFT).long()


def _relative_positions() -> Tensor:
    """Row of the bias table for each pair of a window's pixels (64, 64)."""
    at = torch.arange(WINDOW)
    apart = at[:, None] - at + WINDOW - 1
    rows = apart[:, None, :, None] * (2 * WINDOW - 1)
    return (rows + apart[None, :, None, :]).reshape(WINDOW * WINDOW, WINDOW * WINDOW)
