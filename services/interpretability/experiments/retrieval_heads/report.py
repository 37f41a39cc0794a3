"""Report of the retrieval-heads experiment: score maps, the masking study, the evidence and a HeadPlan.

Knows numbers and names; computes nothing about models.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from services.interpretability.attention.retrieval_score import Aggregate, split_half
from services.interpretability.core.report import (
    Artefact,
    Bar,
    Bars,
    Report,
    Scalar,
    Table,
    canonical_json,
    code_digest,
    head_map,
    head_name,
    needle_map,
)
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.retrieval_heads.spec import RetrievalHeadsSpec, Sample
from services.interpretability.generation.forced_decoding import AnswerScore
from shared.lm.head_plan import HeadPlan

MIN_RETRIEVAL_SCORE = 0.1
"""Mean score from which a head is called a retrieval head (section 3)."""

MIN_SOLVED_ACCURACY = 0.5
"""Share of right answer tokens below which scores of heads mean little."""


def _artefacts(spec: RetrievalHeadsSpec, subject: StudiedModel, scores: Aggregate) -> list[Artefact]:
    """The `retrieval-report/1` of section 6, evidence for head plans, and a plan; two runs give the same bytes."""
    if not scores.kept:
        return []
    report = {
        "schema": "retrieval-report/1",
        "model": {
            "name": subject.name,
            "weights_sha256": subject.weights_sha256,
            "dtype": subject.dtype,
            "tokenizer_sha256": subject.tokenizer_sha256,
            "kv_heads": subject.model.config.kv_heads,
        },
        "protocol": spec.model_dump(mode="json", exclude={"lm", "seed", "dry_run", "hide", "corpus"}),
        "seed": spec.seed,
        "kept": len(scores.kept),
        "scores": scores.mean.tolist(),
        "frequency": scores.frequency.tolist(),
        "always_active": scores.always_active,
        "code": code_digest(),
    }
    plan = HeadPlan.from_retrieval(report, spec.share, kv_heads=subject.model.config.kv_heads)
    plan = plan.model_copy(update={"heads": scores.at_least(MIN_RETRIEVAL_SCORE) or scores.top(0.05)})
    return [
        Artefact.of("retrieval-report.json", canonical_json(report)),
        Artefact.of("head-plan.json", canonical_json(plan.facts())),
    ]


def build_report(
    spec: RetrievalHeadsSpec,
    subject: StudiedModel,
    scored: list[tuple[Sample, dict[str, Any]]],
    scores: Aggregate,
    masked: Mapping[str, list[AnswerScore]],
) -> Report:
    """Return the report of a run, complete or as far as it came."""
    text = scored[0][0].prompt.text if scored and len(scored[0][0].prompt.ids) <= 600 else None
    copied = (
        "Mean share of the answer that a head copied: the head looked most at a token of the answer in the context, "
        "and that token came next. 0.1 and more is called a retrieval head."
    )
    grids = [
        head_map("retrieval_score", scores.mean, copied, text=text),
        head_map("frequency", scores.frequency, "Share of samples in which the head copied at all.", text=text),
    ]
    if spec.protocol == "niah" and scored:
        cells = [(sample.facts, value["accuracy"]) for sample, value in scored]
        grids.append(needle_map(spec.lengths, spec.depths, cells))
    return Report(
        title="Retrieval heads",
        warnings=_warnings(spec, scored, scores),
        scalars=_scalars(spec, scored, scores),
        tables=[_top_heads_table(scores), *_masking_table(masked)],
        grids=grids,
        bars=[_histogram(scores), *_masking_bars(spec, masked)],
        artefacts=_artefacts(spec, subject, scores),
    )


def _warnings(spec: RetrievalHeadsSpec, scored: list[tuple[Sample, dict[str, Any]]], scores: Aggregate) -> list[str]:
    warnings = []
    if not scores.kept:
        warnings.append("No sample was kept: this is a failed measurement, not a model without retrieval heads.")
    elif (right := float(np.mean([value["accuracy"] for _, value in scored]))) < MIN_SOLVED_ACCURACY:
        warnings.append(f"Only {right:.0%} of the answers' tokens were right: the model does not solve the task well.")
    if 0 < len(scores.kept) < 8:
        few = f"{len(scores.kept)} samples are few"
        warnings.append(f"{few}: compare the split-half correlation before you trust a rank.")
    if any(2 * size > scores.mean.size for size in spec.hide):
        warnings.append("More than half of all heads are hidden: too few are left for a control.")
    if spec.hide and spec.hide_samples < 4:
        warnings.append("Fewer than four samples were masked; random controls scatter widely on small models.")
    return warnings


def _scalars(
    spec: RetrievalHeadsSpec, scored: list[tuple[Sample, dict[str, Any]]], scores: Aggregate
) -> dict[str, Scalar]:
    kept = [scored[i][1] for i in scores.kept]
    scalars = {
        "kept": Scalar(value=len(kept), note="Samples that count."),
        "dropped": Scalar(value=len(scored) - len(kept), note="Answer not found in the prompt, or not given."),
    }
    if not kept:
        return scalars
    halves = split_half(np.array([value["scores"] for value in kept]))
    steady = "Correlation of the maps of every other sample; near 1, the map does not hang on its samples."
    right = "Answer tokens that were the likeliest" if spec.teacher_forced else "ROUGE-1 recall of the answer"
    scalars["split_half"] = Scalar(value=halves, note=steady)
    scalars["accuracy"] = Scalar(value=float(np.mean([value["accuracy"] for value in kept])), note=right)
    if losses := [value["nll"] for value in kept if value["nll"] is not None]:
        scalars["nll"] = Scalar(value=float(np.mean(losses)), unit="nats/token")
    found, of = len(scores.at_least(MIN_RETRIEVAL_SCORE)), f"score ≥ {MIN_RETRIEVAL_SCORE}, of {scores.mean.size}"
    scalars["retrieval_heads"] = Scalar(value=found, note=of)
    scalars["always_active"] = Scalar(value=len(scores.always_active), note="copied in every sample")
    scalars["share_zero"] = Scalar(value=float((scores.mean == 0).mean()), note="heads that never copied")
    return scalars


def _top_heads_table(scores: Aggregate, rows: int = 30) -> Table:
    ranked = enumerate(scores.ranking[:rows], 1)
    listed = [[i, head_name(h), float(scores.mean[h]), float(scores.frequency[h])] for i, h in ranked]
    caption = "Heads by mean score, written layer-head; ties go to the lower one."
    return Table.of("top_heads", "rank, head, score, frequency", listed, caption)


def _histogram(scores: Aggregate) -> Bars:
    edges = [0.0, *np.arange(0.05, 1.0, 0.05).round(2).tolist(), np.inf]
    values = scores.mean.ravel()
    bins = [((values > 0) & (values >= low) & (values < high)).sum() for low, high in pairwise(edges)]
    counts = [int((values == 0).sum()), *map(int, bins)]
    labels = ["0", *(f"≥{low:g}" if low else ">0" for low in edges[:-1])]
    bars = [Bar(label=l, value=n) for l, n in zip(labels, counts, strict=True)]
    caption = "How many heads have which score: most never copy, a few do nearly all of it."
    return Bars(name="score_histogram", unit="heads", bars=bars, caption=caption)


def _masking_bars(spec: RetrievalHeadsSpec, masked: Mapping[str, list[AnswerScore]]) -> list[Bars]:
    if not masked:
        return []
    charts = []
    caption = (
        f"Accuracy with uniform attention in heads. Random: {spec.controls} draws, mean ± sd, from heads outside of "
        "the top."
    )
    for what, unit in (("accuracy", "share of right answer tokens"), ("nll", "nats/token")):
        means = {name: float(np.mean([getattr(one, what) for one in each])) for name, each in masked.items()}
        bars = [Bar(label="none", value=means["none"])] if "none" in means else []
        for size in spec.hide:
            bars.append(Bar(label=f"top {size}", value=means.get(f"top {size}")))
            draws = [v for name, v in means.items() if name.startswith(f"random {size} #")]
            bars += [Bar.of_draws(f"random {size}", draws)] if draws else []
        charts.append(Bars(name=f"masking_{what}", unit=unit, bars=bars, caption=caption))
    return charts


def _masking_table(masked: Mapping[str, list[AnswerScore]]) -> list[Table]:
    if not masked:
        return []
    means = {name: np.mean([(f.accuracy, f.nll) for f in each], axis=0).tolist() for name, each in masked.items()}
    rows = [[name, len(masked[name]), *mean] for name, mean in means.items()]
    return [Table.of("masking", "hidden, samples, accuracy, nll", rows, "Every draw.")]
