"""Retrieval heads: which heads copy from a distant place of the context, and what hiding them destroys.

"Retrieval Head Mechanistically Explains Long-Context Factuality" (2024), with AttentionInfluence's key-value task as a
second protocol. Makes the evidence (`retrieval-report/1`) and, from it, a HeadPlan.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from services.interpretability.answering import Answered, Forced, force, forced, generated
from services.interpretability.experiment import EXAMPLE_LM, NO_GRAPH, Cost, Experiment, Progress, Spec, code_digest
from services.interpretability.report import (
    Artefact,
    Bar,
    Bars,
    Grid,
    Report,
    Scalar,
    Table,
    canonical,
    head_axes,
    head_name,
    matrix,
)
from services.interpretability.retrieval import (
    Aggregate,
    Mode,
    aggregate,
    credit,
    retrieval_score,
    rouge1_recall,
    split_half,
)
from services.interpretability.subject import Subject
from shared.lm.head_plan import HeadPlan
from shared.lm.needle import NEEDLES, Needle, Prompt, key_value, needle, needle_span
from shared.registry import Card, Paper

__all__ = ["RetrievalHeads", "RetrievalSpec", "aggregate", "needle_span", "retrieval_score", "rouge1_recall"]

Head = tuple[int, int]

RETRIEVAL = 0.1
"""Mean score from which a head is called a retrieval head (section 3)."""

SOLVED = 0.5
"""Share of right answer tokens below which scores of heads mean little."""

PAPER = Paper(
    title="Retrieval Head Mechanistically Explains Long-Context Factuality", venue="ICLR", year=2025,
    url="https://arxiv.org/abs/2404.15574",
)  # fmt: skip


class OwnNeedle(BaseModel):
    """A needle of one's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sentence: str = Field(min_length=1, max_length=2000)
    question: str = Field(min_length=1, max_length=2000)
    answer: str = Field(min_length=1, max_length=1000, description="The words of the sentence that answer.")


class RetrievalSpec(Spec):
    """Samples, how they are scored, and what is hidden afterwards."""

    protocol: Literal["niah", "kv"] = Field("kv", description="Needles in haystacks, or keys in JSON.")
    samples: int = Field(16, ge=1, le=1000, description="Of the kv protocol; niah has needles × lengths × depths.")
    pairs: int = Field(10, ge=2, le=500, description="Entries of a kv object.")
    shots: int = Field(3, ge=0, le=8, description="Solved examples of kv.")
    key_chars: int = Field(32, ge=2, le=64, description="Letters and digits of a kv key.")
    value_words: int = Field(8, ge=0, le=40, description="Words of a kv value; 0 means eight random letters.")
    lengths: list[int] = Field([350, 700, 1200], min_length=1, max_length=40, description="Tokens of niah prompts.")
    depths: list[int] = Field([0, 25, 50, 75, 100], min_length=1, max_length=40, description="Percent, of niah.")
    needles: list[OwnNeedle] = Field(default_factory=list, max_length=20, description="Own needles instead of ours.")
    corpus: str | None = Field(None, max_length=4_000_000, description="Own haystack instead of generated prose.")
    mode: Mode = Field(
        "positions", description="positions, types (the paper's formula) or count (the released code's)."
    )
    top: int = Field(1, ge=1, le=50, description="A copy counts where any of so many largest positions qualifies.")
    teacher_forced: bool = Field(True, description="Score along the known answer; false generates, as the paper does.")
    steps: int = Field(50, ge=1, le=500, description="Most tokens that are generated.")
    hide: list[int] = Field(
        default_factory=list,
        max_length=8,
        description="Masking study: hide so many top heads, beside random ones.",
    )
    hide_samples: int = Field(4, ge=1, le=100, description="Samples of the masking study.")
    controls: int = Field(10, ge=10, le=100, description="Random draws of as many heads, for each entry of `hide`.")
    phase: Literal["all", "decode"] = Field("all", description="Hide heads always, or only where the answer is made.")
    share: float = Field(0.5, gt=0, le=1, description="Share of key/value heads that the HeadPlan keeps in full.")


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt of the protocol, and what it is told apart by."""

    prompt: Prompt
    facts: Mapping[str, Any]


class RetrievalHeads(Experiment[RetrievalSpec]):
    """Finds retrieval heads, and shows what the model can't do without them."""

    In = RetrievalSpec
    route: ClassVar[str] = "heads/retrieval"
    card: ClassVar[Card] = Card(
        name="retrieval-heads", task="probe", licence="Apache-2.0", paper=PAPER,
        summary="Finds the attention heads that copy from distant context, and what the model can't do without them.",
        notes=(
            "Scores every query head; a HeadPlan takes the largest of each key/value group.",
            "Teacher-forced by default: one forward per sample instead of up to 50; `teacher_forced: false` generates.",
            NO_GRAPH,
        ),
        example={
            "lm": EXAMPLE_LM, "seed": 0, "protocol": "kv", "samples": 4, "pairs": 5, "shots": 2, "key_chars": 4,
            "value_words": 0, "hide": [1], "hide_samples": 2,
        },
    )  # fmt: skip

    def cost(self, spec: RetrievalSpec, subject: Subject) -> Cost:
        """Two forwards per sample when forced, up to `steps` when generating; one per hidden set."""
        samples = list(samples_of(spec, subject))
        total = Cost(0, 0, 0)
        for sample in samples:
            read, said = len(sample.prompt.ids), len(sample.prompt.answer_ids)
            most = Cost(2, read - 1 + said) if spec.teacher_forced else Cost(1 + spec.steps, read - 1 + spec.steps)
            total += most
        draws = [len(_draws(spec, size, subject.layers * subject.heads)) for size in spec.hide]
        variants = sum(1 + n for n in draws) + bool(spec.hide)
        for sample in samples[:: _stride(spec, len(samples))][: spec.hide_samples]:
            total += Cost(1, len(sample.prompt.ids) + len(sample.prompt.answer_ids) - 1) * variants
        return total

    def run(self, spec: RetrievalSpec, subject: Subject, progress: Progress) -> Report:
        """Score all samples, then hide what scored."""
        samples = list(samples_of(spec, subject))
        scored = list(progress.each(samples, lambda s: _content(spec, s), lambda s: _scored(spec, subject, s)))
        scores = [value["scores"] for _, value in scored] or np.zeros((0, subject.layers, subject.heads))
        recalls = [value["recall"] for _, value in scored]
        found = aggregate(scores, recalls, gate=-1.0 if spec.teacher_forced else 0.5)
        study = Study(spec, subject, found, samples, progress)
        hidden = study.run() if found.kept and spec.hide and not progress.stopped else {}
        return _report(spec, subject, [(s, v) for s, v in scored], found, hidden)


def samples_of(spec: RetrievalSpec, subject: Subject) -> Iterator[Sample]:
    """All prompts of the protocol."""
    codec = subject.tokenizer
    if spec.protocol == "kv":
        for i in range(spec.samples):
            seed = spec.seed * 1_000_003 + i
            yield Sample(
                key_value(codec, pairs=spec.pairs, seed=seed, shots=spec.shots, key_chars=spec.key_chars,
                          value_words=spec.value_words), {"sample": i},
            )  # fmt: skip
        return
    needles = [Needle(n.sentence, n.question, n.answer) for n in spec.needles] or NEEDLES
    for n, what in enumerate(needles):
        for length in spec.lengths:
            subject.refuse_above_window(length, "lengths")
            for depth in spec.depths:
                prompt = needle(codec, what, length, depth, corpus=spec.corpus, seed=spec.seed + n)
                yield Sample(prompt, {"needle": n, "length": length, "depth": depth})


def _content(spec: RetrievalSpec, sample: Sample) -> dict[str, Any]:
    """What a cell depends on: the prompt itself and how it is scored."""
    how = (spec.mode, spec.top, spec.teacher_forced, 0 if spec.teacher_forced else spec.steps)
    return {"score": how, "ids": sample.prompt.ids, "answer": sample.prompt.answer_ids, "span": sample.prompt.span}


def _scored(spec: RetrievalSpec, subject: Subject, sample: Sample) -> dict[str, Any]:
    prompt = sample.prompt
    answered = force(subject, prompt, top=spec.top) if spec.teacher_forced else generated(
        subject, prompt, steps=spec.steps, top=spec.top
    )  # fmt: skip
    recall, likely = _recall(subject, prompt, answered), answered.forced
    scores = np.zeros((subject.layers, subject.heads))
    if prompt.span is None:
        recall = -2.0  # below every gate: the answer's place is not known, so nobody can be credited
    elif answered.tokens:
        scores = credit(answered.looked, prompt.ids, answered.tokens, prompt.span, spec.mode)
    return {
        "scores": matrix(scores), "recall": recall, "nll": likely.nll if likely else None,
        "accuracy": likely.accuracy if likely else recall, "answer": subject.tokenizer.decode(answered.tokens),
    }  # fmt: skip


def _recall(subject: Subject, prompt: Prompt, answered: Answered) -> float:
    return rouge1_recall(prompt.answer, subject.tokenizer.decode(answered.tokens))


def _draws(spec: RetrievalSpec, size: int, heads: int) -> list[tuple[int, ...]]:
    """Different sets of `size` places in a ranking of `heads`, as controls; fewer where there are not so many.

    Section 4: from outside the top 100, in small models from outside the top 15 %.
    """
    outside = range(min(100, round(0.15 * heads)), heads)
    rng, found = random.Random(f"{spec.seed}/{size}"), set[tuple[int, ...]]()
    size = min(size, len(outside))
    while len(found) < min(spec.controls, math.comb(len(outside), size)):
        found.add(tuple(sorted(rng.sample(outside, size))))
    return sorted(found)


def _stride(spec: RetrievalSpec, samples: int) -> int:
    """Samples of the masking study are spread over all: every so many-th."""
    return max(samples // spec.hide_samples, 1)


@dataclass(frozen=True)
class Study:
    """The masking experiment (section 4): the top heads hidden, and as many random ones, ten times and more."""

    spec: RetrievalSpec
    subject: Subject
    found: Aggregate
    samples: list[Sample]
    progress: Progress

    def run(self) -> dict[str, list[Forced]]:
        """Variant → what it does to each sample: `none`, `top K`, `random K #i`."""
        chosen = self.samples[:: _stride(self.spec, len(self.samples))][: self.spec.hide_samples]
        results: dict[str, list[Forced]] = {}
        for name, heads in self.variants().items():
            for _, value in self.progress.each(
                chosen,
                lambda s, heads=heads: {"hidden": heads, "phase": self.spec.phase, **_content(self.spec, s)},  # type: ignore[misc]
                lambda s, heads=heads: self._measured(s, heads),  # type: ignore[misc]
            ):
                results.setdefault(name, []).append(Forced(**value))
        return results

    def variants(self) -> dict[str, list[Head]]:
        """The sets that are hidden."""
        found: dict[str, list[Head]] = {"none": []}
        for size in self.spec.hide:
            found[f"top {size}"] = self.found.ranking[:size]
            for i, drawn in enumerate(_draws(self.spec, size, len(self.found.ranking))):
                found[f"random {size} #{i}"] = sorted(self.found.ranking[place] for place in drawn)
        return found

    def _measured(self, sample: Sample, heads: list[Head]) -> dict[str, float]:
        likely = forced(self.subject, sample.prompt, heads, self.spec.phase)
        return {"nll": likely.nll, "accuracy": likely.accuracy}


def evidence(spec: RetrievalSpec, subject: Subject, found: Aggregate) -> dict[str, Any]:
    """The retrieval report of section 6: evidence from which plans are made; two runs write the same bytes."""
    return {
        "schema": "retrieval-report/1",
        "model": {
            "name": subject.name, "weights_sha256": subject.weights_sha256, "dtype": subject.dtype,
            "tokenizer_sha256": subject.tokenizer_sha256, "kv_heads": subject.model.config.kv_heads,
        },
        "protocol": spec.model_dump(mode="json", exclude={"lm", "seed", "dry_run", "hide", "corpus"}),
        "seed": spec.seed, "kept": len(found.kept), "scores": found.mean.tolist(),
        "frequency": found.frequency.tolist(), "always_active": found.always_active, "code": code_digest(),
    }  # fmt: skip


def _artefacts(spec: RetrievalSpec, subject: Subject, found: Aggregate) -> list[Artefact]:
    if not found.kept:
        return []
    report = evidence(spec, subject, found)
    plan = HeadPlan.from_retrieval(report, spec.share, kv_heads=subject.model.config.kv_heads)
    plan = plan.model_copy(update={"heads": found.at_least(RETRIEVAL) or found.top(0.05)})
    return [
        Artefact.of("retrieval-report.json", canonical(report)),
        Artefact.of("head-plan.json", canonical(plan.facts())),
    ]


Scored = list[tuple[Sample, dict[str, Any]]]


def _report(
    spec: RetrievalSpec, subject: Subject, scored: Scored, found: Aggregate, hidden: Mapping[str, list[Forced]]
) -> Report:
    axes = head_axes(subject.layers, subject.heads)
    text = scored[0][0].prompt.text if scored and len(scored[0][0].prompt.ids) <= 600 else None
    grids = [
        Grid(
            name="retrieval_score", values=matrix(found.mean), **axes, text=text,
            caption="Mean share of the answer that a head copied: the head looked most at a token of the answer in the "
            "context, and that token came next. 0.1 and more is called a retrieval head.",
        ),
        Grid(
            name="frequency", values=matrix(found.frequency), **axes, text=text,
            caption="Share of samples in which the head copied at all.",
        ),
    ]  # fmt: skip
    return Report(
        title="Retrieval heads", warnings=_warnings(spec, scored, found),
        scalars=_scalars(spec, scored, found), tables=[_top(found), *_masking_table(hidden)],
        grids=[*grids, *_cells(spec, scored)], bars=[_histogram(found), *_masking(spec, hidden)],
        artefacts=_artefacts(spec, subject, found),
    )  # fmt: skip


def _warnings(spec: RetrievalSpec, scored: Scored, found: Aggregate) -> list[str]:
    told = []
    if not found.kept:
        told.append("No sample was kept: this is a failed measurement, not a model without retrieval heads.")
    elif (right := float(np.mean([value["accuracy"] for _, value in scored]))) < SOLVED:
        told.append(f"Only {right:.0%} of the answers' tokens were right: the model does not solve the task well.")
    if 0 < len(found.kept) < 8:
        told.append(f"{len(found.kept)} samples are few: compare the split-half correlation before you trust a rank.")
    if spec.hide and spec.hide_samples < 4:
        told.append("Fewer than four samples were masked; random controls scatter widely on small models.")
    return told


def _scalars(spec: RetrievalSpec, scored: Scored, found: Aggregate) -> dict[str, Scalar]:
    dropped = len(scored) - len(found.kept)
    told = {
        "kept": Scalar(value=len(found.kept), note="Samples that count."),
        "dropped": Scalar(value=dropped, note="Answer not found in the prompt, or not given."),
    }
    if not found.kept:
        return told
    kept = [scored[i][1] for i in found.kept]
    losses = [value["nll"] for value in kept if value["nll"] is not None]
    size = found.mean.size
    return {
        **told,
        "split_half": Scalar(
            value=split_half(np.array([value["scores"] for value in kept])),
            note="Correlation of the maps of every other sample; near 1, the map does not hang on its samples.",
        ),
        "accuracy": Scalar(
            value=float(np.mean([value["accuracy"] for value in kept])),
            note="Answer tokens that were the likeliest" if spec.teacher_forced else "ROUGE-1 recall of the answer",
        ),
        **({"nll": Scalar(value=float(np.mean(losses)), unit="nats/token")} if losses else {}),
        "retrieval_heads": Scalar(value=len(found.at_least(RETRIEVAL)), note=f"score ≥ {RETRIEVAL}, of {size}"),
        "always_active": Scalar(value=len(found.always_active), note="copied in every sample"),
        "share_zero": Scalar(value=float((found.mean == 0).mean()), note="heads that never copied"),
    }


def _top(found: Aggregate, rows: int = 30) -> Table:
    return Table(
        name="top_heads", columns=["rank", "head", "score", "frequency"],
        rows=[
            [i + 1, head_name(head), float(found.mean[head]), float(found.frequency[head])]
            for i, head in enumerate(found.ranking[:rows])
        ],
        caption="Heads by mean score, written layer-head; ties go to the lower one.",
    )  # fmt: skip


def _histogram(found: Aggregate) -> Bars:
    edges = [0.0, *np.arange(0.05, 1.0, 0.05).round(2).tolist(), np.inf]
    values = found.mean.ravel()
    counts = [int((values == 0).sum())] + [
        int(((values > 0) & (values >= low) & (values < high)).sum()) for low, high in pairwise(edges)
    ]
    labels = ["0", *(f"≥{low:g}" if low else ">0" for low in edges[:-1])]
    return Bars(
        name="score_histogram", unit="heads", bars=[Bar(label=l, value=n) for l, n in zip(labels, counts, strict=True)],
        caption="How many heads have which score: most never copy, a few do nearly all of it.",
    )  # fmt: skip


def _cells(spec: RetrievalSpec, scored: Scored) -> list[Grid]:
    """Depth × length, for needles."""
    if spec.protocol != "niah" or not scored:
        return []
    from services.interpretability.needle_grid import grid_of  # noqa: PLC0415  # it draws what this file measures

    return [grid_of(spec.lengths, spec.depths, [({**s.facts}, v["accuracy"]) for s, v in scored])]


def _masking(spec: RetrievalSpec, hidden: Mapping[str, list[Forced]]) -> list[Bars]:
    if not hidden:
        return []
    found = []
    for what, unit in (("accuracy", "share of right answer tokens"), ("nll", "nats/token")):
        means = {name: float(np.mean([getattr(one, what) for one in each])) for name, each in hidden.items()}
        bars = [Bar(label="none", value=means["none"])] if "none" in means else []
        for size in spec.hide:
            draws = [v for name, v in means.items() if name.startswith(f"random {size} #")]
            bars += [Bar(label=f"top {size}", value=means.get(f"top {size}"))]
            if draws:
                mean, sd = float(np.mean(draws)), float(np.std(draws))
                bars += [Bar(label=f"random {size}", value=mean, low=mean - sd, high=mean + sd)]
        found.append(
            Bars(
                name=f"masking_{what}", unit=unit, bars=bars,
                caption=f"What is left when heads look at everything alike. Random: {spec.controls} draws, mean ± sd, "
                "from heads outside of the top.",
            )
        )  # fmt: skip
    return found


def _masking_table(hidden: Mapping[str, list[Forced]]) -> list[Table]:
    if not hidden:
        return []
    rows = [
        [name, len(each), float(np.mean([f.accuracy for f in each])), float(np.mean([f.nll for f in each]))]
        for name, each in hidden.items()
    ]
    return [Table(name="masking", columns=["hidden", "samples", "accuracy", "nll"], rows=rows, caption="Every draw.")]
