"""Report data model: scalars, tables, heat maps, bars, token strips, graphs, artefacts and the run's manifest.

A report is complete: it can be drawn, compared and reproduced from its manifest. Knows no tensor, picture or HTTP.
"""

from __future__ import annotations

import base64
import builtins
import hashlib
import io
import json
import math
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

NPZ = "application/x-npz"
"""Media type of arrays."""


def _finite(value: Any) -> Any:
    """NaN and infinities are null: JSON has neither."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
"""A measured number; null is undefined."""

Cell = Annotated[str | int | float | bool | None, BeforeValidator(_finite)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scalar(_Part):
    """One number with its unit and a note."""

    value: Number
    unit: str = ""
    note: str = ""


class Table(_Part):
    """Rows under named columns."""

    name: str
    columns: list[str]
    rows: list[list[Cell]]
    caption: str = ""

    @classmethod
    def of(cls, name: str, columns: str, rows: Iterable[Sequence[Any]], caption: str) -> Table:
        """Build a table; `columns` are their names with commas between them."""
        return cls(name=name, columns=columns.split(", "), rows=[[*row] for row in rows], caption=caption)


class Axis(_Part):
    """One axis of a heat map: its label, and a tick per row or column."""

    label: str
    ticks: list[str]


class HeatMap(_Part):
    """Heat map: numbers over two axes (layers by heads, depths by lengths, queries by keys)."""

    name: str
    values: list[list[Number]]
    rows: Axis
    columns: Axis
    scale: Literal["sequential", "diverging"] = "sequential"
    unit: str = ""
    caption: str = Field(description="How to read it.")
    text: str | None = Field(None, description="Text on which a head's pattern can be looked at, where there is one.")

    @property
    def alt(self) -> str:
        """Alternative text: the axes and the three largest cells."""
        cells = [(v, r, c) for r, row in enumerate(self.values) for c, v in enumerate(row) if v is not None]
        largest = sorted(cells, key=lambda cell: (-abs(cell[0]), cell[1], cell[2]))[:3]
        listed = ", ".join(f"{self.rows.ticks[r]}/{self.columns.ticks[c]} {v:.3g}" for v, r, c in largest)
        return f"{self.name}: {self.rows.label} by {self.columns.label}. Largest: {listed or 'nothing defined'}."


class Bar(_Part):
    """One bar, with an interval where its value varies."""

    label: str
    value: Number
    low: Number = None
    high: Number = None

    @classmethod
    def of_draws(cls, label: str, draws: Sequence[float]) -> Bar:
        """Build a bar of the mean of draws, with one standard deviation to both sides; undefined without draws."""
        if not len(draws) or np.isnan(draws).any():
            return cls(label=label, value=None)
        mean, sd = float(np.mean(draws)), float(np.std(draws))
        return cls(label=label, value=mean, low=mean - sd, high=mean + sd)


class Bars(_Part):
    """Values side by side: before and after, counts of a histogram."""

    name: str
    bars: list[Bar]
    unit: str = ""
    caption: str


class TokenSpan(_Part):
    """A token with its span in the text, in characters."""

    text: str
    start: int
    end: int


class Strip(_Part):
    """One value per token of a text."""

    name: str
    tokens: list[TokenSpan]
    values: list[Number]
    scale: Literal["sequential", "diverging"] = "sequential"
    caption: str


class Node(_Part):
    """A head in a circuit, or an MLP or the embedding (layer −1), which have no head."""

    id: str
    layer: int
    head: int | None = None
    kind: str = ""
    value: Number = None


class Edge(_Part):
    """Effect of one head through another, or on the output."""

    source: str
    target: str
    value: Number


class Graph(_Part):
    """A circuit: heads, and the effects between them."""

    name: str
    nodes: list[Node]
    edges: list[Edge]
    caption: str


class Artefact(_Part):
    """Output that other services can read, addressed by its content."""

    name: str
    media_type: str
    sha256: str
    bytes: int
    content: str | None = Field(None, description="The content itself.")
    encoding: Literal["utf-8", "base64"] = Field("utf-8", description="How `content` holds the bytes.")

    @classmethod
    def of(cls, name: str, content: str | builtins.bytes, media_type: str = "application/json") -> Artefact:
        """Build an artefact that holds a text or bytes."""
        held: dict[str, Any] = {"content": content}
        if isinstance(content, str):
            content = content.encode()
        else:
            held = {"content": base64.b64encode(content).decode(), "encoding": "base64"}
        digest = hashlib.sha256(content).hexdigest()
        return cls(name=name, media_type=media_type, sha256=digest, bytes=len(content), **held)

    def data(self) -> builtins.bytes:
        """The bytes of the content."""
        text = self.content or ""
        return base64.b64decode(text) if self.encoding == "base64" else text.encode()


class RunManifest(_Part):
    """Everything a report depends on: with it, the same experiment gives the same numbers."""

    experiment: str
    model: str
    weights_sha256: str
    tokenizer_sha256: str
    dtype: str
    device: str
    kernel: str = "sdpa, eager where rows are read"
    code: str = Field(description="Digest of the experiment's sources and of the decoder's.")
    seed: int
    report: str = Field("", description="Key under which a job's report is kept: GET /v1/probe/reports/{key}.")
    created: str | None = Field(
        None, description="When the first cell was computed; null for what one forward answers."
    )
    compute_s: float | None = Field(None, description="Seconds of all cells, as each was first computed.")


class Report(_Part):
    """The result of an experiment."""

    title: str
    partial: bool = Field(False, description="Whether it was stopped before the end.")
    warnings: list[str] = Field(default_factory=list, description="Caveats of the numbers.")
    scalars: dict[str, Scalar] = Field(default_factory=dict)
    tables: list[Table] = Field(default_factory=list)
    grids: list[HeatMap] = Field(default_factory=list)
    bars: list[Bars] = Field(default_factory=list)
    strips: list[Strip] = Field(default_factory=list)
    graphs: list[Graph] = Field(default_factory=list)
    artefacts: list[Artefact] = Field(default_factory=list)
    spec: dict[str, Any] = Field(default_factory=dict, description="The request that this answers.")
    manifest: RunManifest | None = None

    def grid(self, name: str) -> HeatMap:
        """Return the heat map of that name; `KeyError` if there is none."""
        return {grid.name: grid for grid in self.grids}[name]


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return arrays as NPZ; equal arrays give equal bytes."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            held = io.BytesIO()
            np.save(held, array, allow_pickle=False)
            # An entry without a date: numpy's own writer puts the clock into the file.
            archive.writestr(zipfile.ZipInfo(f"{key}.npy"), held.getvalue(), zipfile.ZIP_DEFLATED)
    return raw.getvalue()


def canonical_json(content: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal content gives equal bytes."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def json_digest(content: Any) -> str:
    """Return the sha256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


@lru_cache(maxsize=8)
def code_digest(module: str = __name__) -> str:
    """Return the sha256 over the sources of this service, of the decoder and of the package of a plug-in's module."""
    service, total = Path(__file__).parents[1], hashlib.sha256()
    folders = [service, service.parents[1] / "shared" / "lm"]
    top = module.partition(".")[0]
    if top not in {"services", "__main__"} and (file := sys.modules[top].__file__):
        folders.append(Path(file).parent)
    for source in sorted(one for at in folders for one in {*at.rglob("*.py")} - {*at.rglob("tests/**/*.py")}):
        total.update(source.name.encode() + b"\0" + source.read_bytes())
    return total.hexdigest()


def to_matrix(values: Iterable[Iterable[float]] | np.ndarray) -> list[list[float | None]]:
    """Return nested lists of Python floats, NaN as None: what heat maps and cached cells hold."""
    return [[_finite(float(v)) for v in row] for row in values]


def head_name(head: Sequence[int]) -> str:
    """Return `layer-head`, the way heads are written everywhere."""
    return f"{head[0]}-{head[1]}"


def heat_map(
    name: str,
    values: Any,
    rows: tuple[str, Iterable[object]],
    columns: tuple[str, Iterable[object]],
    caption: str,
    **more: Any,
) -> HeatMap:
    """Return a heat map of values [R,C]; an axis is its label and its ticks, `more` are other fields of the map."""
    row_axis, column_axis = (Axis(label=label, ticks=[*map(str, ticks)]) for label, ticks in (rows, columns))
    return HeatMap(name=name, values=to_matrix(values), rows=row_axis, columns=column_axis, caption=caption, **more)


def head_map(name: str, values: Any, caption: str, kind: str = "head", **more: Any) -> HeatMap:
    """Return a heat map of all heads of a kind from values [L,H]."""
    return heat_map(name, values, ("layer", range(len(values))), (kind, range(len(values[0]))), caption, **more)


def needle_map(
    lengths: Sequence[int],
    depths: Sequence[float],
    cells: Sequence[tuple[Mapping[str, Any], float]],
    name: str = "needle",
) -> HeatMap:
    """Return the map of mean recall per depth (row) and length (column) from cells with `length` and `depth`."""
    recalls: dict[tuple[float, int], list[float]] = {}
    for facts, recall in cells:
        recalls.setdefault((facts["depth"], facts["length"]), []).append(recall)
    values = [[np.mean(recalls.get((depth, length), np.nan)) for length in lengths] for depth in depths]
    caption = "How much of the answer came back, by context length and by how deep the needle was: 1 is all of it."
    axes = ("depth, %", depths), ("length, tokens", lengths)
    return heat_map(name, values, *axes, caption, unit="share of the answer")
