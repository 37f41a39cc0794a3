"""Tap of one traced forward: a recorder that edits and captures sites, and attention that exposes its patterns.

Both live for one call. Knows sites, edits and the default attention; knows nothing about models or logits.
"""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from shared.lm.activation_names import WEIGHT_SITES, CaptureTooLarge, Site, SiteScope, parse_site, to_local_positions
from shared.lm.attention import DenseAttention, causal_mask, eager, patterns, scores, sdpa
from shared.lm.host_transfer import to_device
from shared.lm.interventions import CompiledEdit, Edit, compile_edit

BatchRows = slice | None
"""Rows of the batch that an edit sees as its whole batch; None is all of them."""


class ValueSource(Protocol):
    """Remembers the values of earlier tokens: a KV cache."""

    def values(self, layer: int, end: int) -> Tensor:
        """Values of the first `end` tokens at a layer [B,S,G,d]."""


class TapRecorder:
    """Tap of one call: edits sites, and captures those that were asked for."""

    def __init__(
        self,
        extent: SiteScope,
        capture: Iterable[str],
        edits: Iterable[tuple[Edit, BatchRows]],
        queries: int | Iterable[int] | None,
        *,
        grad: bool,
    ) -> None:
        self.extent = extent
        self.grad = grad
        self.names = {parse_site(name, extent.config): name for name in capture}
        self.edits: dict[Site, list[tuple[CompiledEdit, BatchRows]]] = {}
        for edit, rows in edits:
            site, compiled = compile_edit(edit, extent)
            self.edits.setdefault(site, []).append((compiled, rows))
        self.queries = None if queries is None else to_local_positions(queries, extent)
        self.captured: dict[str, Tensor] = {}
        self.cache: ValueSource | None = None
        self._values: Tensor | None = None
        self._tapped = {(s.name, s.layer) for s in (*self.names, *self.edits)}

    @property
    def tapped(self) -> frozenset[tuple[str, int]]:
        """Names and layers of the sites that are edited or captured."""
        return frozenset(self._tapped)

    @property
    def is_active(self) -> bool:
        """Whether there is anything to edit or capture."""
        return bool(self._tapped)

    @property
    def weight_layers(self) -> set[int]:
        """Layers whose scores or pattern are captured or edited."""
        return {layer for name, layer in self._tapped if name in WEIGHT_SITES}

    @property
    def has_weight_edits(self) -> bool:
        """Whether scores or patterns are edited, so that z must come from them."""
        return any(site.name in WEIGHT_SITES for site in self.edits)

    def refuse_above(self, max_cells: int, rows: int, queries: int) -> None:
        """Refuse a pattern that is too large, before anything is computed."""
        H, S = self.extent.config.heads, self.extent.total
        if rows * H * queries * S > max_cells:
            detail = f"A pattern of B·H·T·S = {rows}·{H}·{queries}·{S} cells exceeds max_cells={max_cells}."
            raise CaptureTooLarge(detail, hint="Trace a slice of the text, or name the query positions in `queries`.")

    def __call__(self, name: str, layer: int, x: Tensor) -> Tensor:
        """Edit, then capture."""
        if name == "v":
            self._values = x
        if (name, layer) not in self._tapped:
            return x
        site = Site(name, layer)
        for edit, rows in self.edits.get(site, ()):
            x = self._apply(edit, rows, x, layer)
        if name == "v":
            self._values = x
        return self._capture(site, x) if site in self.names else x

    def capture_rows(self, name: str, layer: int, x: Tensor) -> None:
        """Capture a tensor that holds only the wanted query rows."""
        if (full_name := self.names.get(Site(name, layer))) is not None:
            self.captured[full_name] = x

    def _apply(self, edit: CompiledEdit, rows: BatchRows, x: Tensor, layer: int) -> Tensor:
        def read_values() -> Tensor:
            values = self._values if self.cache is None else self.cache.values(layer, self.extent.total)
            if values is None:
                raise RuntimeError("values are read before any were computed")
            return values if rows is None else values[rows]

        if rows is None:
            return edit(x, read_values)
        x = x.clone()
        x[rows] = edit(x[rows], read_values)
        return x

    def _capture(self, site: Site, x: Tensor) -> Tensor:
        if self.grad and not x.requires_grad:
            x = x.detach().requires_grad_()
        captured = x
        if site.name in WEIGHT_SITES and self.queries is not None:
            captured = x.index_select(2, to_device(self.queries, x.device, torch.long))
        if not self.grad:
            # float16 overflows in the residual streams of some models.
            captured = captured.detach().to(torch.float32 if x.dtype == torch.float16 else x.dtype, copy=True)
        self.captured[self.names[site]] = captured
        return x


class TappedAttention:
    """Causal attention that exposes scores and patterns to a recorder at some layers, and is fused at the others."""

    def __init__(
        self, dense: DenseAttention, layers: frozenset[int], recorder: TapRecorder, *, rows_only: bool
    ) -> None:
        self.dense = dense
        self.layers = layers
        self.recorder = recorder
        self.rows_only = rows_only

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:
        """Mix values; see `shared.lm.attention.AttentionFn`."""
        keys, values = self.dense.remember(layer, k, v, offset)
        window = self.dense.window(layer)
        if layer in self.layers and not self.rows_only:
            return eager(q, keys, values, self.dense.pad, layer=layer, tap=self.recorder, window=window)
        if layer in self.layers:
            self._rows(layer, q, keys, offset)
        return sdpa(q, keys, values, self.dense.pad, window)

    def _rows(self, layer: int, q: Tensor, keys: Tensor, offset: int) -> None:
        queries = to_device(list(self.recorder.queries or ()), q.device, torch.long)
        mask = causal_mask(queries + offset, keys.shape[2], self.dense.pad, self.dense.window(layer))
        scored = scores(q[:, queries], keys, mask)
        self.recorder.capture_rows("scores", layer, scored)
        self.recorder.capture_rows("pattern", layer, patterns(scored))
