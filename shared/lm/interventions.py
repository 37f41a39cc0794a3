"""Interventions on named activations: edits as frozen values, and the functions that they compile to.

An edit never writes into its input. Knows sites and shapes; knows nothing about kernels or decoders.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shared.lm.activation_names import (
    SITES,
    InvalidTap,
    Site,
    SiteScope,
    parse_layer,
    parse_site,
    resolve_indices,
    to_local_positions,
)
from shared.lm.host_transfer import take_rows, to_device

Indices = int | Iterable[int] | None
Values = Callable[[], Tensor]
"""Values of all tokens seen so far at the layer at hand, [B,S,G,d]."""


@dataclass(frozen=True, eq=False, slots=True)
class Replace:
    """Replace the selection by the entries of `value`, which broadcasts to the site's full shape."""

    site: str
    value: Tensor
    heads: Indices = None
    positions: Indices = None
    rows: Indices = None


@dataclass(frozen=True, eq=False, slots=True)
class Scale:
    """Multiply the selection by `factor`; 0 on `z.l` is zero ablation."""

    site: str
    factor: float | Tensor
    heads: Indices = None
    positions: Indices = None
    rows: Indices = None


@dataclass(frozen=True, eq=False, slots=True)
class Add:
    """Add `value`, which broadcasts to the site's full shape, to the selection: a steering vector."""

    site: str
    value: Tensor
    heads: Indices = None
    positions: Indices = None
    rows: Indices = None


@dataclass(frozen=True, eq=False, slots=True)
class Uniform:
    """Make the attention of heads uniform over all visible keys, by setting their queries to zero."""

    layer: int
    heads: Indices = None
    positions: Indices = None
    rows: Indices = None


@dataclass(frozen=True, eq=False, slots=True)
class Attend:
    """Override pattern rows: `weights` (used as given) on `keys`, zero elsewhere.

    Of several heads and queries all get the same weights [keys], or each query its own [queries, keys].
    """

    layer: int
    head: int | Iterable[int]
    query: int | Iterable[int]
    keys: Indices
    weights: Any
    rows: Indices = None


Edit = Replace | Add | Scale | Uniform | Attend

_Selection = tuple[Sequence[int], ...]

CompiledEdit = Callable[[Tensor, Values], Tensor]
"""A checked edit: the site's tensor in, the edited tensor out."""


def compile_edit(edit: Edit, extent: SiteScope) -> tuple[Site, CompiledEdit]:
    """Check an edit against the sizes of a forward; return its site and the function to apply; else `InvalidTap`."""
    if isinstance(edit, Attend):
        return _compile_attend(edit, extent)
    if isinstance(edit, Uniform):
        parse_layer(edit.layer, extent.config, f"Uniform(layer={edit.layer})")
        edit = Scale(f"q.{edit.layer}", 0.0, edit.heads, edit.positions, edit.rows)
    site = parse_site(edit.site, extent.config)
    index = _index_selection(edit, site, extent)
    if isinstance(edit, Scale):
        return site, _compile_scale(edit.factor, index)
    return site, _compile_write(edit, index)


def _compile_scale(factor: float | Tensor, index: _Selection) -> CompiledEdit:
    def scale(x: Tensor, _values: Values) -> Tensor:
        by = to_device(factor, x.device) if isinstance(factor, Tensor) else factor
        at, x = _mesh(index, x.device), x.clone()
        x[at] = x[at] * by
        return x

    return scale


def _compile_write(edit: Replace | Add, index: _Selection) -> CompiledEdit:
    def write(x: Tensor, _values: Values) -> Tensor:
        try:
            value = to_device(edit.value, x.device).to(x).expand_as(x)
        except RuntimeError as error:
            detail = f"A value of shape {tuple(edit.value.shape)} does not broadcast to {edit.site}, {tuple(x.shape)}."
            raise InvalidTap(detail, field=edit.site) from error
        at, x = _mesh(index, x.device), x.clone()
        x[at] = x[at] + value[at] if isinstance(edit, Add) else value[at]
        return x

    return write


def _compile_attend(edit: Attend, extent: SiteScope) -> tuple[Site, CompiledEdit]:
    config = extent.config
    site = Site("z", parse_layer(edit.layer, config, f"Attend(layer={edit.layer})"))
    heads = resolve_indices(edit.head, config.heads, "head")
    queries = to_local_positions(edit.query, extent)
    if not queries:  # not among this forward's tokens; its keys may lie ahead, too
        return site, lambda z, _values: z
    keys = resolve_indices(range(extent.total) if edit.keys is None else edit.keys, extent.total, "key position")
    weights = edit.weights if isinstance(edit.weights, Tensor) else torch.tensor(edit.weights, device="cpu")
    if weights.numel() not in {1, len(keys), len(queries) * len(keys)}:
        raise InvalidTap(f"Attend has {weights.numel()} weights for {len(keys)} keys.", field="weights")
    rows = list(range(extent.rows) if edit.rows is None else resolve_indices(edit.rows, extent.rows, "row"))
    groups = [head // (config.heads // config.kv_heads) for head in heads]

    def attend(z: Tensor, values: Values) -> Tensor:
        v = take_rows(values(), rows)
        v = v.index_select(1, to_device(keys, v.device, torch.long))
        v = v.index_select(2, to_device(groups, v.device, torch.long))
        given = to_device(weights, v.device).to(v).expand(len(queries), len(keys))
        z = z.clone()
        z[_mesh((rows, queries, heads), z.device)] = torch.einsum("qk,bkhd->bqhd", given, v)
        return z

    return site, attend


def _mesh(lists: _Selection, device: torch.device) -> tuple[Any, ...]:
    """Index of an open mesh over the first axes: slices where that will do, else tensors on the device."""
    if all(one and list(one) == list(range(one[0], one[0] + len(one))) for one in lists):
        return tuple(slice(one[0], one[0] + len(one)) for one in lists)
    last = len(lists) - 1
    return tuple(to_device(list(one), device, torch.long).view(-1, *[1] * (last - i)) for i, one in enumerate(lists))


def _index_selection(edit: Replace | Add | Scale, site: Site, extent: SiteScope) -> _Selection:
    """Indices along the first of the site's axes, which form an open mesh; empty where everything is selected."""
    count = extent.heads(site.axes)
    if edit.heads is not None and count is None:
        known = ", ".join(name for name, axes in SITES.items() if extent.heads(axes))
        detail = f"{edit.site} has no heads, so heads={edit.heads!r} can't be chosen; sites with heads are {known}."
        raise InvalidTap(detail, field="heads")
    selected: dict[str, list[int]] = {}
    if edit.rows is not None:
        selected["B"] = resolve_indices(edit.rows, extent.rows, "row")
    if edit.positions is not None:
        selected["T"] = to_local_positions(edit.positions, extent)
    if edit.heads is not None and count is not None:
        selected["H" if "H" in site.axes else "G"] = resolve_indices(edit.heads, count, "head")
    full = {"B": extent.rows, "T": extent.tokens, "H": extent.config.heads, "G": extent.config.kv_heads}
    axes = site.axes[:3] if count is not None else site.axes[:2]
    return tuple(selected.get(a, range(full[a])) for a in axes) if selected else ()
