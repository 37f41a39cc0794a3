"""Attention-influence experiment: how much a document's loss grows when retrieval heads are masked; what to select.

"AttentionInfluence: Adopting Attention Head Influence for Weak-to-Strong Pretraining Data Selection" (2025). Scores
are ranked inside a domain only, with as many random heads as control.
"""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError

from fovea.errors import InvalidOption, Malformed
from services.interpretability.core.experiment import Cost, Experiment, Progress, Spec, probe_card
from services.interpretability.core.losses import token_losses
from services.interpretability.core.report import (
    Artefact,
    Bar,
    Bars,
    Report,
    Scalar,
    Table,
    canonical_json,
    json_digest,
)
from services.interpretability.core.studied_model import StudiedModel
from shared.lazy_module import LazyModule
from shared.lm.decoder import Decoder
from shared.registry import Card, Paper

stats = LazyModule("scipy.stats")

Head = tuple[int, int]

MIN_TOKENS = 16
"""Tokens below which the service answers a document with an error: its loss ratio is noise."""

MIN_BASE_LOSS = 1e-6
"""Base loss at and below which the score has no meaning."""


_EXAMPLE = (
    ("copies", " ".join(["kqzwxm"] * 8)),
    ("copies", " ".join(["hjvbtp"] * 8)),
    ("prose", "The heron waits in the reeds."),
    ("prose", "Nobody asked why it was late."),
    ("prose", "short"),
)

_COLUMNS = "id, domain, tokens, base, masked, score, control_score, rank, percentile, selected, error"


@dataclass(frozen=True, slots=True)
class Document:
    """Tokenised document."""

    id: Any
    domain: str
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Influence:
    """Losses of a document and its score (masked − base) / base, None where the base loss is almost 0."""

    id: Any
    domain: str
    base: float
    masked: float
    score: float | None


@torch.no_grad()
def token_loss(model: Decoder, tokens: Sequence[int], masked: Iterable[Head] = ()) -> float:
    """Return the mean loss of tokens 2…n in nats, some heads masked, long ones in windows; `InvalidOption` if n < 2."""
    if len(tokens) < 2:
        raise InvalidOption("A document needs two tokens: the first is not predicted.", field="tokens")
    heads, total, count = list(masked), 0.0, 0
    for window in _windows(tokens, model.config.positions):
        ids = torch.tensor([list(window)], device=model.output_matrix.device)
        losses = token_losses(model, ids, masked=heads)
        total, count = total + float(losses.double().sum()), count + losses.numel()
    return total / count


def influence(model: Decoder, documents: Iterable[Document], masked: Iterable[Head]) -> Iterator[Influence]:
    """Yield losses and scores of documents, in input order."""
    heads = list(masked)
    for document in documents:
        base, with_mask = token_loss(model, document.tokens), token_loss(model, document.tokens, heads)
        yield Influence(document.id, document.domain, base, with_mask, _score(base, with_mask))


def select(rows: Iterable[Influence], fraction: float = 0.2) -> dict[str, list[Any]]:
    """Return the best max(1, ceil(fraction·n)) of each domain, best first, ties in input order; never unscored rows."""
    domains: dict[str, list[Influence]] = {}
    for row in rows:
        domains.setdefault(row.domain, []).append(row)
    return {domain: [row.id for row in _best(of, fraction)] for domain, of in domains.items()}


def _best(rows: Sequence[Influence], fraction: float) -> list[Influence]:
    scored = [row for row in rows if row.score is not None]
    return sorted(scored, key=lambda row: -(row.score or 0.0))[: max(1, math.ceil(fraction * len(scored) - 1e-9))]


def _score(base: float, masked: float) -> float | None:
    return (masked - base) / base if base > MIN_BASE_LOSS else None


def _windows(tokens: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Consecutive windows; one that would hold a single token gives nothing to predict and is left out."""
    for start in range(0, len(tokens), size):
        if len(window := tokens[start : start + size]) >= 2:
            yield window


_NO_CONTROL = "More than half of all heads are hidden: too few are left for a control."


class _DocumentLine(BaseModel, extra="forbid"):
    id: str | int
    domain: str = Field("all", max_length=200)
    text: str


class InfluenceSpec(Spec):
    """Documents, and the heads that are masked."""

    documents: str = Field(min_length=1, max_length=32_000_000, description="JSON lines of id, domain and text.")
    heads: list[list[int]] = Field(
        min_length=1, max_length=4096, description="Retrieval heads as [layer, head]; retrieval-heads finds them."
    )
    select: float = Field(0.2, gt=0, le=1, description="Share of each domain that is kept.")
    by_length: bool = Field(False, description="Rank among documents of about the same length (a factor of two) only.")


class AttentionInfluence(Experiment[InfluenceSpec]):
    """Rates documents by how much a small model needs its retrieval heads for them."""

    In = InfluenceSpec
    route: ClassVar[str] = "influence"
    card: ClassVar[Card] = probe_card(
        "attention-influence",
        "Chooses documents whose loss suffers most when a model's retrieval heads are hidden.",
        Paper.on_arxiv(
            "AttentionInfluence: Adopting Attention Head Influence for Weak-to-Strong Pretraining Data Selection",
            2025,
            "2505.07293",
        ),
        "Never compare scores across domains: losses differ in scale.",
        "Look at control_score: where as many random heads do the same, the score says nothing about retrieval.",
        "Long documents are favoured; the rank correlation of score and length is in the report.",
        heads=[[1, 1], [1, 2], [1, 3]],
        documents="\n".join(
            f'{{"id": {i}, "domain": "{domain}", "text": "{text}"}}' for i, (domain, text) in enumerate(_EXAMPLE)
        ),
    )

    def cost(self, spec: InfluenceSpec, subject: StudiedModel) -> Cost:
        total = Cost(0, 0, 0)
        for _, ids in _parse_documents(spec, subject):
            if len(ids) >= MIN_TOKENS:
                windows = list(_windows(ids, subject.window))
                total += Cost(3 * len(windows), 3 * sum(map(len, windows)))
        return total

    def run(self, spec: InfluenceSpec, subject: StudiedModel, progress: Progress) -> Report:
        heads = subject.check_heads(spec.heads)
        control = draw_control_heads(subject, heads, spec.seed)
        documents = _parse_documents(spec, subject)
        long_enough = [pair for pair in documents if len(pair[1]) >= MIN_TOKENS]

        def content(pair: tuple[_DocumentLine, list[int]]) -> dict[str, Any]:
            return {"id": pair[0].id, "text": json_digest(pair[0].text), "heads": sorted(heads), "control": control}

        def work(pair: tuple[_DocumentLine, list[int]]) -> dict[str, float]:
            sets = {"base": [], "masked": heads} | ({"control": control} if control else {})
            return {name: token_loss(subject.model, pair[1], hidden) for name, hidden in sets.items()}

        losses = {id(pair[0]): value for pair, value in progress.each(long_enough, content, work)}
        # Measured, or too short to be; others were not reached before a stop.
        reported = [pair for pair in documents if id(pair[0]) in losses or len(pair[1]) < MIN_TOKENS]
        rows = [_row(line, ids, losses.get(id(line))) for line, ids in reported]
        return _report(_rank_rows(rows, spec), heads, control)


def draw_control_heads(subject: StudiedModel, heads: Sequence[Head], seed: int) -> list[Head]:
    """Draw as many random heads that are not masked, the same for all documents; none where too few are left."""
    others = subject.complement(heads)
    return sorted(random.Random(f"influence/{seed}").sample(others, len(heads))) if len(others) >= len(heads) else []


def _parse_documents(spec: InfluenceSpec, subject: StudiedModel) -> list[tuple[_DocumentLine, list[int]]]:
    lines = []
    for number, text in enumerate(spec.documents.split("\n"), 1):  # texts may hold other line breaks, such as U+2028
        if not text.strip():
            continue
        try:
            line = _DocumentLine.model_validate_json(text)
        except ValidationError as error:
            detail = f"Line {number} of documents is not an object of id, domain and text."
            raise Malformed(detail, field="documents") from error
        lines.append((line, subject.tokenizer.encode(line.text)))
    if not lines:
        raise InvalidOption("documents holds no line.", field="documents")
    return lines


def _row(line: _DocumentLine, ids: Sequence[int], losses: dict[str, float] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"id": line.id, "domain": line.domain, "tokens": len(ids)}
    if losses is None:
        return {**row, "error": f"{len(ids)} tokens; below {MIN_TOKENS} the ratio of losses is noise."}
    base, masked, control = losses["base"], losses["masked"], losses.get("control")
    row |= {"base": base, "masked": masked, "score": _score(base, masked)}
    return {**row, "control_score": None if control is None else _score(base, control)}


def _rank_rows(rows: list[dict[str, Any]], spec: InfluenceSpec) -> list[dict[str, Any]]:
    """Rank, percentile and choice inside each domain (and length, where asked for)."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("score") is not None:
            bucket = int(math.log2(row["tokens"])) if spec.by_length else 0
            groups.setdefault((row["domain"], bucket), []).append(row)
    for of in groups.values():
        kept = max(1, math.ceil(spec.select * len(of) - 1e-9))  # 0.07 of 100 are not 8
        for rank, row in enumerate(sorted(of, key=lambda row: -row["score"]), 1):
            row |= {"rank": rank, "percentile": 100 * (len(of) - rank + 0.5) / len(of), "selected": rank <= kept}
    return rows


def _report(rows: list[dict[str, Any]], heads: Sequence[Head], control: Sequence[Head]) -> Report:
    scored = [row for row in rows if row.get("score") is not None]
    domains = sorted({row["domain"] for row in scored})
    listed = [[row.get(column) for column in _COLUMNS.split(", ")] for row in rows[:1000]]
    by_domain = {name: [row for row in scored if row["domain"] == name] for name in domains}
    lines = "".join(canonical_json(row) + "\n" for row in rows)
    cuts = [_domain_row(name, of) for name, of in by_domain.items()]
    rank_note = "Per domain; the last column is the rank correlation of score and length."
    return Report(
        title="Attention influence",
        warnings=([] if control else [_NO_CONTROL]) + _warnings(scored, rows),
        scalars={
            "documents": Scalar(value=len(rows)),
            "scored": Scalar(value=len(scored)),
            "selected": Scalar(value=sum(bool(row.get("selected")) for row in rows)),
            "heads_hidden": Scalar(value=len(heads), note=json_digest([list(h) for h in sorted(heads)])[:12]),
        },
        tables=[
            Table.of("documents", _COLUMNS, listed, "Documents in input order; ranks are inside a domain."),
            Table.of("domains", "domain, documents, mean score, mean control, cut, score ~ length", cuts, rank_note),
            Table.of("control", "layer, head", control, "The random heads of control_score."),
        ],
        bars=[_histogram(name, of) for name, of in list(by_domain.items())[:20]],
        artefacts=[Artefact.of("influence.jsonl", lines, "application/x-ndjson")],
    )


def _warnings(scored: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[str]:
    warnings = [f"{len(rows) - len(scored)} documents have no score."] if len(scored) < len(rows) else []
    weak = sum(row["control_score"] is not None and row["control_score"] >= row["score"] for row in scored)
    if weak:
        warnings.append(f"For {weak} of {len(scored)} documents as many random heads do as much: no evidence there.")
    return warnings


def _domain_row(name: str, rows: list[dict[str, Any]]) -> list[Any]:
    scores = np.array([row["score"] for row in rows])
    cut = min((row["score"] for row in rows if row["selected"]), default=None)
    lengths = np.array([row["tokens"] for row in rows], float)
    controls = [row["control_score"] for row in rows if row["control_score"] is not None]
    control = float(np.mean(controls)) if controls else None
    return [name, len(rows), float(scores.mean()), control, cut, _spearman(scores, lengths)]


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return None
    return float(stats.spearmanr(a, b).statistic)


def _histogram(domain: str, rows: list[dict[str, Any]]) -> Bars:
    scores = [row["score"] for row in rows]
    counts, edges = np.histogram(scores, bins=min(10, max(1, len(scores))))
    cut = min((row["score"] for row in rows if row["selected"]), default=float("nan"))
    return Bars(
        name=f"scores of {domain}",
        unit="documents",
        bars=[Bar(label=f"{edge:.3g}", value=int(n)) for edge, n in zip(edges, counts, strict=False)],
        caption=f"Scores in the domain {domain}; documents from {cut:.3g} on are kept.",
    )
