"""Reports of RULER-form evaluations, `ruler-report/1`: cells with intervals, and leaderboards at equal bytes.

Knows predictions and their scores; knows no engine.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from fovea_lab.ruler.statistics import bootstrap, bootstrap_tasks, paired

INFORMATIVE = 0.2
"""A task tells methods apart at a length where dense's lower bound is at least this."""

_FREE: float = 2.0


class Prediction(BaseModel):
    """One answer."""

    digest: str
    task: str
    length: int
    index: int
    group: int
    method: str
    knobs: dict[str, Any] = Field(default_factory=dict)
    plan: str | None = None
    budget: float | None = None
    protocol: str = "agnostic"
    prediction: str
    references: list[str] = Field(default_factory=list)
    score: float = 0.0
    tokens: int = 0
    kv_bytes: int = 0
    kv_bytes_dense: int = 0
    kv_bytes_end: int = 0
    kv_bytes_peak: int = 0
    prefill_density: float = 1.0
    seconds: float = 0.0


class Difference(BaseModel):
    """Against dense on the same samples."""

    mean: float
    low: float
    high: float


class Cell(BaseModel):
    """One task at one length under one method: n answers of `groups` contexts, or the reason why there are none."""

    task: str
    length: int
    method: str
    knobs: dict[str, Any] = Field(default_factory=dict)
    plan: str | None = Field(None, description="Digest of the head plan.")
    budget: float | None = None
    protocol: str = "agnostic"
    n: int = 0
    groups: int = 0
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    difference: Difference | None = None
    worse: int = 0
    better: int = 0
    equal: int = 0
    empty: int = Field(0, description="Answers without a character.")
    tokens: float = Field(0.0, description="Tokens of an answer, mean: listing everything scores, too.")
    kv_bytes: float = 0.0
    kv_bytes_dense: float = 0.0
    kv_bytes_end: float = 0.0
    kv_bytes_peak: float = Field(0.0, description="Most held while the method read; 0 in older answers.")
    prefill_density: float = 1.0
    seconds: float = 0.0
    reason: str = ""


class Leader(BaseModel):
    """One method at one budget over tasks, each of equal weight."""

    method: str
    budget: float | None
    protocol: str
    length: int
    informative: bool = Field(description="Over tasks that tell methods apart; else over all.")
    tasks: list[str]
    n: int
    bytes: float = Field(description="Held, as a share of dense.")
    mean: float
    low: float
    high: float
    difference: Difference
    worse: int
    better: int
    retained: float = Field(description="Mean over dense's.")
    seconds: float
    nominal: bool = Field(False, description="Entries that count, not bytes: a peer that masks and frees nothing.")


class RulerReport(BaseModel):
    """All cells, and leaderboards sorted by mean. Numbers compare methods here, never with published RULER tables."""

    schema_: str = Field("ruler-report/1", alias="schema", serialization_alias="schema")
    manifest: dict[str, Any] = Field(default_factory=dict)
    spec: dict[str, Any] = Field(default_factory=dict)
    informative: dict[str, list[str]] = Field(default_factory=dict, description="Tasks by length.")
    leaderboards: list[Leader] = Field(default_factory=list)
    cells: list[Cell] = Field(default_factory=list)

    model_config = {"populate_by_name": True}


def build_report(
    predictions: Iterable[Prediction],
    *,
    spec: Mapping[str, Any],
    manifest: Mapping[str, Any],
    refused: Iterable[Cell] = (),
    draws: int = 2000,
) -> RulerReport:
    """Gather predictions into cells, pair them with dense, and rank."""
    by_cell: dict[tuple[Any, ...], list[Prediction]] = {}
    for one in predictions:
        key = (one.protocol, one.length, one.task, one.method, one.budget)
        by_cell.setdefault(key, []).append(one)
    dense = {
        (protocol, length, task): {one.digest: one for one in found}
        for (protocol, length, task, name, _), found in by_cell.items()
        if name == "dense"
    }
    cells = [_build_cell(found, dense.get(key[:3], {}), draws) for key, found in by_cell.items() if key[:3] in dense]
    able = [cell for cell in cells if cell.method == "dense" and (cell.low or 0) >= INFORMATIVE]
    informative = {
        str(length): list(dict.fromkeys(cell.task for cell in able if cell.length == length))
        for length in sorted({cell.length for cell in cells})
    }
    return RulerReport(
        manifest=dict(manifest),
        spec=dict(spec),
        informative=informative,
        leaderboards=_rank(by_cell, dense, informative, draws),
        cells=[*cells, *refused],
    )


def _build_cell(found: Sequence[Prediction], dense: Mapping[str, Prediction], draws: int) -> Cell:
    first, scores, groups = found[0], [one.score for one in found], [one.group for one in found]
    both = [one for one in found if one.digest in dense]
    twins, own = [dense[one.digest].score for one in both], [one.group for one in both]
    against = paired([one.score for one in both], twins, groups=own, draws=draws) if both else None
    return Cell(
        **first.model_dump(include={"task", "length", "method", "knobs", "plan", "budget", "protocol"}),
        n=len(found),
        groups=len(set(groups)),
        **asdict(bootstrap(scores, groups=groups, draws=draws)),
        **({} if against is None else asdict(against)),
        empty=sum(not one.prediction.strip() for one in found),
        **{
            name: sum(getattr(one, name) for one in found) / len(found)
            for name in (
                *("tokens", "kv_bytes", "kv_bytes_dense", "kv_bytes_end", "kv_bytes_peak"),
                *("prefill_density", "seconds"),
            )
        },
    )


def _rank(
    by_cell: Mapping[tuple[Any, ...], list[Prediction]],
    dense: Mapping[tuple[Any, ...], Mapping[str, Prediction]],
    informative: Mapping[str, Sequence[str]],
    draws: int,
) -> list[Leader]:
    leaders = []
    for only in (True, False):
        rows: dict[tuple[Any, ...], dict[str, list[Prediction]]] = {}
        for (protocol, length, task, name, budget), found in by_cell.items():
            if (protocol, length, task) in dense and (not only or task in informative[str(length)]):
                rows.setdefault((protocol, length, name, budget), {})[task] = found
        leaders += [_lead(key, tasks, dense, only, draws) for key, tasks in rows.items()]
    return sorted(
        leaders, key=lambda x: (not x.informative, x.protocol, x.length, -(x.budget or _FREE), -x.mean, x.method)
    )


def _lead(
    key: tuple[Any, ...],
    tasks: Mapping[str, list[Prediction]],
    dense: Mapping[tuple[Any, ...], Mapping[str, Prediction]],
    only: bool,
    draws: int,
) -> Leader:
    protocol, length, name, budget = key
    scores, lost, base, worse, better = [], [], [], 0, 0
    for task, found in tasks.items():
        twin = dense[protocol, length, task]
        mine = [one for one in found if one.digest in twin]
        groups = [one.group for one in mine]
        scores.append(([one.score for one in mine], groups))
        differences = [one.score - twin[one.digest].score for one in mine]
        lost.append((differences, groups))
        base.append(sum(twin[one.digest].score for one in mine) / len(mine))
        worse, better = worse + sum(x < 0 for x in differences), better + sum(x > 0 for x in differences)
    mean, every = bootstrap_tasks(scores, draws=draws), [one for found in tasks.values() for one in found]
    return Leader(
        method=name,
        budget=budget,
        protocol=protocol,
        length=length,
        informative=only,
        tasks=list(tasks),
        n=len(every),
        bytes=sum(one.kv_bytes for one in every) / max(sum(one.kv_bytes_dense for one in every), 1),
        **asdict(mean),
        difference=Difference(**asdict(bootstrap_tasks(lost, draws=draws))),
        worse=worse,
        better=better,
        retained=mean.mean / (sum(base) / len(base)) if sum(base) else 0.0,
        seconds=sum(one.seconds for one in every),
        nominal=name.startswith(("kvpress ", "vllm ")),
    )
