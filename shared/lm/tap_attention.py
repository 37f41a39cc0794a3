"""What listens during one traced forward: the ear that edits and keeps sites, and attention that lets it hear patterns.

Both are made for one call and forgotten with it. Knows sites, edits and the default attention; knows nothing about
models or logits.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from shared.lm.activation_names import WEIGHT_SITES, CaptureTooLarge, Extent, Site, parse_site, to_local_positions
from shared.lm.attention import DenseAttention, causal_mask, eager, patterns, scores, sdpa
from shared.lm.cache import KVCache
from shared.lm.interventions import CompiledEdit, Edit, compile_edit

__all__ = ["BatchRows", "TapRecorder", "TappedAttention"]

BatchRows = slice | None
"""Rows of the batch that an edit knows as its whole batch; None is all of them."""


class TapRecorder:
    """The tap of one call: which sites are edited how, which are kept, and what was kept."""

    def __init__(
        self,
        extent: Extent,
        capture: Iterable[str],
        edits: Iterable[tuple[Edit, BatchRows]],
        queries: int | Iterable[int] | None,
        *,
        grad: bool,
    ) -> None:
        self.extent = extent
        self.grad = grad
        self.names = {parse_site(name, extent.config): name for name in capture}
        self.deeds: dict[Site, list[tuple[CompiledEdit, BatchRows]]] = {}
        for edit, block in edits:
            site, deed = compile_edit(edit, extent)
            self.deeds.setdefault(site, []).append((deed, block))
        self.queries = None if queries is None else to_local_positions(queries, extent)
        self.captured: dict[str, Tensor] = {}
        self.cache: KVCache | None = None
        self._values: Tensor | None = None
        self._watched = {(s.name, s.layer) for s in (*self.names, *self.deeds)}

    @property
    def listens(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._watched)

    @property
    def weight_layers(self) -> set[int]:
        """Layers whose scores or pattern are wanted or edited."""
        return {layer for name, layer in self._watched if name in WEIGHT_SITES}

    @property
    def edits_weights(self) -> bool:
        """Whether scores or patterns are edited, so that z must come from them."""
        return any(site.name in WEIGHT_SITES for site in self.deeds)

    def refuse_above(self, max_cells: int, rows: int, queries: int) -> None:
        """Refuse a pattern that is too large, before anything is computed."""
        H, S = self.extent.config.heads, self.extent.total
        if rows * H * queries * S > max_cells:
            detail = f"A pattern of B·H·T·S = {rows}·{H}·{queries}·{S} cells exceeds max_cells={max_cells}."
            raise CaptureTooLarge(detail, hint="Trace a slice of the text, or name the query positions in `queries`.")

    def __call__(self, name: str, layer: int, x: Tensor) -> Tensor:
        """Edit, then keep."""
        if name == "v":
            self._values = x
        if (name, layer) not in self._watched:
            return x
        site = Site(name, layer)
        for deed, block in self.deeds.get(site, ()):
            x = self._edited(deed, block, x, layer)
        if name == "v":
            self._values = x
        return self._kept(site, x) if site in self.names else x

    def keep_rows(self, name: str, layer: int, x: Tensor) -> None:
        """Keep a tensor that holds only the wanted query rows."""
        if (wanted := self.names.get(Site(name, layer))) is not None:
            self.captured[wanted] = x

    def _edited(self, deed: CompiledEdit, block: BatchRows, x: Tensor, layer: int) -> Tensor:
        def values() -> Tensor:
            held = self._values if self.cache is None else self.cache.values(layer, self.extent.total)
            if held is None:
                message = "values are read before any were computed"
                raise RuntimeError(message)
            return held if block is None else held[block]

        if block is None:
            return deed(x, values)
        x = x.clone()
        x[block] = deed(x[block], values)
        return x

    def _kept(self, site: Site, x: Tensor) -> Tensor:
        if self.grad and not x.requires_grad:
            x = x.detach().requires_grad_()
        seen = x[:, :, self.queries] if site.name in WEIGHT_SITES and self.queries is not None else x
        if not self.grad:
            # float16 overflows in the residual streams of some models.
            seen = seen.detach().to(torch.float32 if x.dtype == torch.float16 else x.dtype, copy=True)
        self.captured[self.names[site]] = seen
        return x


class TappedAttention:
    """Causal attention that lets an ear hear scores and patterns at some layers, and is fused at the others."""

    def __init__(self, dense: DenseAttention, layers: frozenset[int], ear: TapRecorder, *, rows_only: bool) -> None:
        self.dense = dense
        self.layers = layers
        self.ear = ear
        self.rows_only = rows_only

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, offset: int) -> Tensor:
        """Mix values; see `shared.lm.attention.AttentionSeam`."""
        keys, values = self.dense.remember(layer, k, v, offset)
        window = self.dense.window(layer)
        if layer in self.layers and not self.rows_only:
            return eager(q, keys, values, self.dense.pad, layer=layer, tap=self.ear, window=window)
        if layer in self.layers:
            self._rows(layer, q, keys, offset)
        return sdpa(q, keys, values, self.dense.pad, window)

    def _rows(self, layer: int, q: Tensor, keys: Tensor, offset: int) -> None:
        wanted = torch.tensor(self.ear.queries, dtype=torch.long)
        scored = scores(
            q[:, wanted], keys, causal_mask(wanted + offset, keys.shape[2], self.dense.pad, self.dense.window(layer))
        )
        self.ear.keep_rows("scores", layer, scored)
        self.ear.keep_rows("pattern", layer, patterns(scored))
