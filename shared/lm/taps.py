"""Tracing of a decoder: `trace` captures named activations and applies edits, without hooks or globals.

A forward without captures and edits is the plain forward, operation for operation. Chooses the kernel that has the
wanted sites; knows nothing about experiments, text or plots.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from shared.lm.activation_names import CaptureTooLarge, InvalidTap, SiteScope
from shared.lm.attention import AttentionFn, DenseAttention, ignore_taps
from shared.lm.cache import KVCache
from shared.lm.decoder import Decoder
from shared.lm.interventions import Add, Attend, Edit, Replace, Scale, Uniform
from shared.lm.tap_attention import TappedAttention, TapRecorder

__all__ = [
    "Add", "Attend", "CaptureTooLarge", "Edit", "InvalidTap", "Replace", "Scale", "Trace", "Uniform", "sweep", "trace",
]  # fmt: skip

MAX_CELLS = 2**28
"""Cells of one captured pattern before it is refused: 1 GiB in float32."""

SWEEP_BYTES = 256 * 2**20
"""Default bound on variants·B·T·D·4 bytes in one forward of `sweep`."""


@dataclass(frozen=True, slots=True)
class Trace(Mapping[str, Tensor]):
    """Logits [B,T,V] (or of the last `keep` positions) and the captured sites by name."""

    logits: Tensor
    captured: Mapping[str, Tensor] = field(repr=False)

    def __getitem__(self, name: str) -> Tensor:
        """Return a captured site; `KeyError` if it was not captured."""
        if name not in self.captured:
            raise KeyError(f"{name!r} was not captured; captured are {', '.join(self.captured) or 'none'}")
        return self.captured[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.captured)

    def __len__(self) -> int:
        return len(self.captured)


def trace(
    model: Decoder,
    ids: Tensor,
    *,
    capture: Iterable[str] = (),
    edits: Iterable[Edit] = (),
    kernel: Literal["eager", "sdpa"] | None = None,
    cache: KVCache | None = None,
    attend: AttentionFn | None = None,
    queries: int | Iterable[int] | None = None,
    keep: int | None = None,
    pad: Tensor | None = None,
    grad: bool = False,
    max_cells: int = MAX_CELLS,
) -> Trace:
    """Run `model` on `ids` [B,T] once.

    Args:
        model: The decoder; it is left as it was.
        ids: Tokens [B,T].
        capture: Names of sites to keep, after their edits. Copies in the compute dtype (float16 widens to float32).
        edits: Applied at their sites in the given order.
        kernel: `eager` or `sdpa` for all layers; None takes the fastest that can serve each layer's captures.
        cache: Continue from it. Positions of edits and `queries` count in the whole sequence.
        attend: Replaces the attention; then no layer has `scores` or `pattern`.
        queries: Keep only these query positions of `scores` and `pattern`, and compute no others if need be.
        keep: Logits of the last `keep` positions only.
        pad: Left padding per row, [B].
        grad: Record gradients; captures then stay part of the graph.
        max_cells: Largest pattern, in cells, that is computed.

    Raises:
        InvalidTap: A site, layer, head or position that does not exist, or that the kernel has not; a ValueError.
        CaptureTooLarge: A pattern would exceed `max_cells`; a ValueError.
    """
    offset = 0 if cache is None else cache.length
    extent = SiteScope(ids.shape[0], ids.shape[1], offset, more=cache is not None, config=model.config)
    if grad and cache is not None:
        raise InvalidTap("A cache holds no gradients; trace the whole sequence at once.", field="grad")
    recorder = TapRecorder(extent, capture, [(edit, None) for edit in edits], queries, grad=grad)
    return _run_traced(model, ids, recorder, kernel, cache, attend, keep, pad, max_cells)


def sweep(
    model: Decoder,
    ids: Tensor,
    variants: Iterable[Sequence[Edit]],
    *,
    batch: int | None = None,
    capture: Iterable[str] = (),
    kernel: Literal["eager", "sdpa"] | None = None,
    keep: int | None = None,
    pad: Tensor | None = None,
) -> Iterator[Trace]:
    """Trace each variant (a list of edits), many per forward, stacked along the batch axis; traces keep their order.

    Each variant's edits see its own copy of the batch: rows, values and shapes are those of `ids` [B,T]. A forward has
    `batch` variants; the default keeps variants·B·T·D·4 bytes under 256 MiB. Other options are those of `trace`.
    """
    B, T = ids.shape
    wanted, remaining = list(capture), list(variants)
    size = batch or max(1, SWEEP_BYTES // (B * T * model.config.width * 4))
    extent = SiteScope(B, T, 0, more=False, config=model.config)
    while remaining:
        now, remaining = remaining[:size], remaining[size:]
        placed = [(edit, slice(i * B, (i + 1) * B)) for i, edits in enumerate(now) for edit in edits]
        recorder = TapRecorder(extent, wanted, placed, None, grad=False)
        stacked = ids.repeat(len(now), 1)
        stacked_pad = None if pad is None else pad.repeat(len(now))
        whole = _run_traced(model, stacked, recorder, kernel, None, None, keep, stacked_pad, MAX_CELLS)
        for i in range(len(now)):
            rows = slice(i * B, (i + 1) * B)
            yield Trace(whole.logits[rows], {name: x[rows] for name, x in whole.captured.items()})


def _run_traced(
    model: Decoder,
    ids: Tensor,
    recorder: TapRecorder,
    kernel: Literal["eager", "sdpa"] | None,
    cache: KVCache | None,
    attend: AttentionFn | None,
    keep: int | None,
    pad: Tensor | None,
    max_cells: int,
) -> Trace:
    eager_layers = range(model.config.layers) if kernel == "eager" else sorted(recorder.weight_layers)
    if recorder.weight_layers and (attend is not None or kernel == "sdpa"):
        detail = "scores and pattern exist in the eager kernel only, not in sdpa or an attend of one's own."
        raise InvalidTap(detail, field="kernel")
    rows_only = kernel is None and recorder.queries is not None and not recorder.has_weight_edits
    if eager_layers and attend is None:
        recorder.refuse_above(max_cells, ids.shape[0], len(recorder.queries or ()) if rows_only else ids.shape[1])
        padding = pad if cache is None else cache.set_padding(pad)
        dense = DenseAttention(cache, padding, model.config.windows)
        attend = TappedAttention(dense, frozenset(eager_layers), recorder, rows_only=rows_only)
    recorder.cache = cache
    with torch.set_grad_enabled(recorder.grad):
        tap = recorder if recorder.is_active else ignore_taps
        logits = model(ids, cache=cache, attend=attend, keep=keep, pad=pad, tap=tap)
    return Trace(logits, recorder.captured)
