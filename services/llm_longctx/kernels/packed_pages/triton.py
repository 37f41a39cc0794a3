"""Ragged decode over packed pages on a GPU, or in Triton's interpreter: codes are read as they lie and widened there.

A word of 32 bits is loaded once and spread over the codes that it holds. For rotated pages a launch before rotates the
queries, and one behind rotates back what was mixed. Problems are cut and merged as in `decode`. Imported only where
Triton is installed. Knows launches; the kernels are next to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from services.llm_longctx.kernels.decode.device_runs import DeviceRuns
from services.llm_longctx.kernels.decode.triton import PROGRAMS_PER_PROCESSOR, Parts, cut
from services.llm_longctx.kernels.device.cards import GpuCard
from services.llm_longctx.kernels.device.launch import Launch, Variant, card_for, counters, power_of_two, precision
from services.llm_longctx.kernels.device.shapes import DECODERS
from services.llm_longctx.kernels.device.triton import LOG2E
from services.llm_longctx.kernels.dispatch import is_interpreted
from services.llm_longctx.kernels.packed_pages.affine.triton import decode_affine
from services.llm_longctx.kernels.packed_pages.layout import (
    CACHE_FORMATS,
    PAGE,
    R4,
    VALUE_GROUP,
    PackedLayout,
    tile_entries,
)
from services.llm_longctx.kernels.packed_pages.rotated.triton import decode_rotated, launch_turn, turn


def decode_packed(
    q: Tensor, packed: tuple[PackedLayout, Tensor, Tensor], runs: DeviceRuns, parts: Parts | None = None
) -> tuple[Tensor, Tensor]:
    """See `decode_packed`; the LSE is float32, and nothing is read by the host."""
    layout, pages, _ = packed
    if layout.is_rotated:
        q = turn(layout, q.contiguous(), pages, runs.start, back=False)
    out, lse = _attend(q.contiguous(), packed, runs, parts)
    return (turn(layout, out, pages, runs.start, back=True) if layout.is_rotated else out), lse


def _attend(
    q: Tensor, packed: tuple[PackedLayout, Tensor, Tensor], runs: DeviceRuns, parts: Parts | None
) -> tuple[Tensor, Tensor]:
    layout, pages, log_weights = packed
    R, G, d = q.shape
    out, lse = torch.empty_like(q), torch.empty(R, G, dtype=torch.float32, device=q.device)
    if not R:
        return out, lse
    # A run may begin in the middle of a page.
    card = card_for(q.device)
    launch = _launch(card, layout, q.dtype, G, weighted=runs.any_weighted)
    parts = parts or cut(R, runs.longest + PAGE, card, programs=max(8 // launch.warps, PROGRAMS_PER_PROCESSOR))
    held = torch.empty(R * parts.most * G * (d + 1), dtype=torch.float32, device=q.device) if parts.most > 1 else lse
    launch(
        (R, parts.most),
        q,
        pages.view(torch.int32),
        pages.view(torch.int16) if layout.is_rotated else pages,
        log_weights,
        runs.start,
        runs.n,
        runs.weighted.to(torch.int32),
        out,
        lse,
        held,
        held[-R * parts.most * G :],
        counters(q.device, R),
        d**-0.5 * LOG2E,
        parts.span,
    )
    return out, lse


def _launch(card: GpuCard, layout: PackedLayout, dtype: torch.dtype, G: int, *, weighted: bool) -> Launch:
    constants = {
        "BITS": layout.code_bits,
        "BYTES": layout.nbytes,
        "WIDTH": layout.width,
        "CODES": layout.code_bytes,
        "WEIGHTED": weighted,
        "G": G,
        "D": layout.head_dim,
        "GROUP": power_of_two(G),
        "PAGE": PAGE,
        "PRECISION": precision(dtype),
        "WIDEN": is_interpreted(),  # the interpreter multiplies bfloat16 as if it were whole numbers
    }
    stages = 3 if card.capability >= 90 else 2
    if layout.is_rotated:
        return _launch_rotated(card, layout, dtype, constants, stages)
    wide, rows = power_of_two(layout.head_dim, 32), power_of_two(G, 8)
    # One warp's tiles need no barriers, and more of them fit on a processor than of four.
    warps = min(max(rows * wide // 1024, 1), 4)
    constants |= {"ROWS": rows, "WIDE": wide, "KEYS": tile_entries(wide), "GROUPS": max(wide // VALUE_GROUP, 1)}
    constants |= {"VALUE_GROUPS": layout.value_groups, "AT_ONCE": max(1024 * warps // (power_of_two(G) * wide), 1)}
    return Launch(decode_affine, constants, warps, stages, 192 if layout.code_bits == 4 else None)


def _launch_rotated(
    card: GpuCard, layout: PackedLayout, dtype: torch.dtype, constants: dict[str, object], stages: int
) -> Launch:
    wide, group = power_of_two(layout.head_dim, 16), int(str(constants["GROUP"]))
    keys = min(max(16384 // (wide * dtype.itemsize), 32), 128)
    if layout.width < wide:
        keys = 32  # masks take registers
    if layout.code_bits == 3:
        keys = min(keys, 64 if wide < 128 or card.capability >= 90 else 32)  # so do codes of two planes
    constants |= {"ROWS": max(group, 16), "WIDE": wide, "KEYS": keys, "AT_ONCE": max(4096 // (group * wide), 1)}
    # Four warps have too few registers for levels of 256 channels.
    return Launch(decode_rotated, constants, 8 if wide >= 256 else 4, stages)


def variants(card: GpuCard) -> Iterator[Variant]:
    """Yield all formats for the decoders of `DECODERS`, in bfloat16, and the rotation."""
    types = dict.fromkeys(("q", "out"), "*bf16") | dict.fromkeys(("start", "lengths"), "*i64")
    types |= {"words": "*i32", "pages": "*u8", "weighted": "*i32", "arrived": "*i32", "scale": "fp32"}
    types |= dict.fromkeys(("weights", "lse", "part_out", "part_lse"), "*fp32")
    for name, G, d in DECODERS:
        for bits in CACHE_FORMATS:
            layout = PackedLayout(bits, d)
            words = f"{'rotated, ' if layout.is_rotated else ''}{layout.code_bits} bits"
            launch = _launch(card, layout, torch.bfloat16, G, weighted=True)
            kinds = types | {"pages": "*i16"} if layout.is_rotated else types
            share = 0.5 if layout.code_bits == 3 else 0.8  # a thread loads 4 bytes of the upper plane of few channels
            yield Variant("packed_pages", f"{name}, {words}", launch, kinds, frozenset(("span",)), vectorized=share)
        kinds = {"x": "*bf16", "out": "*bf16", "halves": "*i16", "start": "*i64", "matrix": "*fp32"}
        launch = launch_turn(PackedLayout(R4, d), G, back=True)
        yield Variant("packed_pages", f"{name}, rotation", launch, kinds, matrix=False, copies=False, vectorized=0.8)
