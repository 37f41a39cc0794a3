"""The oracle of packed pages, in torch: entry = scale · (code + zero).

A scale is a float of eight bits, five of them exponent: 2^(e - 20) · (1 + m / 8). A zero is a whole number of scales
from -128 to 127. A scale is rounded up to what covers the group's range and reaches its smallest entry.

Rotated pages: R · entry = scale · level[code], where the scale gives the entry back its norm.
"""

import torch
from torch import Tensor

from services.llm_longctx.kernels.packed_pages.layout import LANES, PAGE, VALUE_GROUP, PackedLayout
from services.llm_longctx.kernels.packed_pages.rotation import LEVELS, rotate, rotate_back, signs

_LEAST = 107 << 23  # float32's bits of the smallest scale, 2^-20
_STEP = 1 << 20  # between two scales


def pack(layout: PackedLayout, k: Tensor, v: Tensor, heads: Tensor | None = None) -> Tensor:
    """Pages [m,bytes] uint8 of keys and values [m,16,d]; `heads` [m] seed rotations, 0 by default."""
    if layout.is_rotated:
        return _pack_rotated(layout, k, v, torch.zeros(len(k), device=k.device) if heads is None else heads)
    m, width, groups = len(k), layout.width, layout.value_groups
    key_codes, key_scale, key_zero = _quantize(_pad(k, width), 1, layout.bits)
    grouped = _pad(v, groups * VALUE_GROUP).view(m, PAGE, groups, VALUE_GROUP)
    real = torch.arange(groups * VALUE_GROUP, device=v.device).view(groups, VALUE_GROUP) < layout.head_dim
    codes, scale, zero = _quantize(grouped, 3, layout.bits, real)
    value_codes = _pad(torch.where(real, codes, 0).flatten(2), width)[:, :, :width]
    lanes_of_values = value_codes.transpose(1, 2).reshape(m, -1, LANES, PAGE)  # [m,blocks,lane,entry]
    parts = [
        _to_lanes(layout, key_codes[:, None]),
        _to_lanes(layout, lanes_of_values),
        key_scale.flatten(1),
        _to_bytes(key_zero.flatten(1)),
        scale.squeeze(3).transpose(1, 2).flatten(1),
        _to_bytes(zero.squeeze(3).transpose(1, 2).flatten(1)),
    ]
    return torch.cat([part.to(torch.uint8).view(m, -1) for part in parts], 1)


def unpack(layout: PackedLayout, pages: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [m,16,d] in float32 of pages [m,bytes]."""
    if layout.is_rotated:
        return _unpack_rotated(layout, pages)
    d, width, groups, n = layout.head_dim, layout.width, layout.value_groups, layout.code_bytes
    sizes = [n, n, width, width, PAGE * groups, PAGE * groups]
    keys, values, key_scale, key_zero, scale, zero = torch.split(pages, sizes, 1)
    k = _from_lanes(layout, keys, 1)[:, 0] + key_zero.view(torch.int8)[:, None].float()
    k = k * scale_of(key_scale)[:, None]
    v = _from_lanes(layout, values, width // LANES).flatten(1, 2).transpose(1, 2)  # [m,16,width]
    of = torch.arange(width, device=pages.device) // VALUE_GROUP
    shape = (-1, groups, PAGE)
    per_entry = [x.reshape(shape).transpose(1, 2)[:, :, of] for x in (zero.view(torch.int8).float(), scale_of(scale))]
    v = (v + per_entry[0]) * per_entry[1]
    return k[:, :, :d].contiguous(), v[:, :, :d].contiguous()


def heads_of(pages: Tensor) -> Tensor:
    """Numbers of the heads [m] of rotated pages [m,bytes]."""
    negative = pages[:, -4 * PAGE :].contiguous().view(torch.int16) < 0
    return (negative.long() << torch.arange(2 * PAGE, device=pages.device)).sum(1)


def _pack_rotated(layout: PackedLayout, k: Tensor, v: Tensor, heads: Tensor) -> Tensor:
    m, d, width = len(k), layout.head_dim, layout.width
    levels, by = torch.tensor(LEVELS[layout.code_bits], device=k.device), signs(heads, d)
    codes, scales = [], []
    for x in (k, v):
        norm = x.float().norm(dim=-1, keepdim=True)
        turned = rotate(x, by) * (d**0.5 / norm.clamp(min=1e-30))
        codes.append(torch.bucketize(turned, (levels[1:] + levels[:-1]) / 2))
        scales.append((norm / levels[codes[-1]].norm(dim=-1, keepdim=True)).clamp(max=65504.0).half())
    lanes_of_values = _pad(codes[1], width).transpose(1, 2).reshape(m, -1, LANES, PAGE)
    both = torch.cat([scale.view(m, PAGE) for scale in scales], 1)
    bits = heads.long()[:, None] >> torch.arange(2 * PAGE, device=k.device) & 1
    parts = [
        _to_planes(layout, _pad(codes[0], width)[:, None]),
        _to_planes(layout, lanes_of_values),
        torch.where(bits > 0, -both, both).view(torch.uint8),
    ]
    return torch.cat(parts, 1)


def _unpack_rotated(layout: PackedLayout, pages: Tensor) -> tuple[Tensor, Tensor]:
    d, n, width = layout.head_dim, layout.code_bytes, layout.width
    levels, by = torch.tensor(LEVELS[layout.code_bits], device=pages.device), signs(heads_of(pages), d)
    keys, values, scales = torch.split(pages, [n, n, 4 * PAGE], 1)
    k_codes = _from_planes(layout, keys, 1)[:, 0]
    v_codes = _from_planes(layout, values, width // LANES).flatten(1, 2).transpose(1, 2)
    wide = scales.contiguous().view(torch.float16).view(-1, 2, PAGE, 1).float().abs()
    k, v = (rotate_back(levels[x[..., :d].long()] * wide[:, i], by) for i, x in enumerate((k_codes, v_codes)))
    return k.contiguous(), v.contiguous()


def _to_planes(layout: PackedLayout, codes: Tensor) -> Tensor:
    """Codes [m,blocks,lane,steps…] as bytes [m,…]: of three bits the lower two first, then the upper ones."""
    if layout.code_bits != 3:
        return _to_lanes(layout, codes).flatten(1)
    upper = (codes >> 2).reshape(
        *codes.shape[:3], codes.shape[3] // 16, 8, 2
    )  # even steps in the lower byte, odd ones in the upper
    high = (upper << torch.arange(8, device=codes.device)[:, None]).sum(-2).to(torch.uint8)
    return torch.cat((_to_lanes(layout, codes & 3).flatten(1), high.transpose(2, 3).flatten(1)), 1)


def _from_planes(layout: PackedLayout, raw: Tensor, blocks: int) -> Tensor:
    """Codes [m,blocks,lane,step…] in float32 of bytes [m,…]."""
    if layout.code_bits != 3:
        return _from_lanes(layout, raw, blocks)
    low, high = torch.split(raw, [raw.shape[1] // 3 * 2, raw.shape[1] // 3], 1)
    parts = high.shape[1] // (2 * blocks * LANES)  # there may be no page
    halves = high.reshape(len(raw), blocks, parts, LANES, 2).transpose(2, 3)  # [m,blocks,lane,part,half]
    upper = halves[..., None, :] >> torch.arange(8, device=raw.device)[:, None] & 1
    return _from_lanes(layout, low.contiguous(), blocks) + 4 * upper.flatten(3).float()


def scale_of(code: Tensor) -> Tensor:
    """Scales in float32 of their bytes."""
    return (code.int() * _STEP + _LEAST).view(torch.float32)


def _quantize(x: Tensor, dim: int, bits: int, real: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, and bytes of scales and zeros, of groups along `dim`; what is not `real` does not count."""
    x = x.float()
    low = x if real is None else x.masked_fill(~real, torch.inf)
    high = x if real is None else x.masked_fill(~real, -torch.inf)
    low, high = low.amin(dim, keepdim=True), high.amax(dim, keepdim=True)
    least = torch.stack(((high - low) / (2**bits - 1), low / -128, low / 127)).amax(0)
    scale = (-(-(least.view(torch.int32) - _LEAST) // _STEP)).clamp(0, 255)
    by = scale_of(scale)
    zero = (low / by).round().clamp(-128, 127)
    return (x / by - zero).round().clamp(0, 2**bits - 1).int(), scale, zero


def _to_lanes(layout: PackedLayout, codes: Tensor) -> Tensor:
    """Codes [m,blocks,lane,steps…] as bytes [m,…]."""
    m, blocks, lanes, _ = codes.shape
    stepped = codes.reshape(m, blocks, lanes, -1, layout.steps)
    words = torch.zeros(stepped.shape[:-1], dtype=torch.int64, device=codes.device)
    for step in range(layout.steps):
        words |= stepped[..., step].long() << layout.shift(step)
    low = torch.where(words >= 1 << 31, words - (1 << 32), words).int()
    return low.transpose(2, 3).contiguous().view(torch.uint8)


def _from_lanes(layout: PackedLayout, raw: Tensor, blocks: int) -> Tensor:
    """Codes [m,blocks,lane,step…] in float32 of bytes [m,…]."""
    steps = raw.shape[1] // (4 * blocks * LANES)  # there may be no page
    words = raw.contiguous().view(torch.int32).view(len(raw), blocks, steps, LANES).transpose(2, 3)
    mask = 2 ** (32 // layout.steps) - 1
    codes = torch.stack([words >> layout.shift(step) & mask for step in range(layout.steps)], -1)
    return codes.flatten(3).float()


def _to_bytes(zero: Tensor) -> Tensor:
    return zero.to(torch.int8).view(torch.uint8)


def _pad(x: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x
