"""Retrieval heads: which heads copy from a distant place of the context, and what hiding them destroys.

"Retrieval Head Mechanistically Explains Long-Context Factuality" (2024), with AttentionInfluence's key-value task as a
second protocol. Makes the evidence (`retrieval-report/1`) and, from it, a HeadPlan.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from services.interpretability.attention.retrieval_score import (
    Aggregate,
    ScoreMode,
    aggregate,
    retrieval_score,
    rouge1_recall,
    score_copies,
)
from services.interpretability.core.experiment import EXAMPLE_LM, NO_GRAPH, Cost, Experiment, Progress, Spec
from services.interpretability.core.report import Report, to_matrix
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.generation.forced_decoding import (
    AnswerScore,
    TracedAnswer,
    generate_answer,
    score_known_answer,
    trace_known_answer,
)
from services.interpretability.generation.prefix_reader import PrefixReader, plan_pieces
from services.interpretability.retrieval_report import build_report
from shared.lm.niah_prompts import NEEDLES, Needle, Prompt, build_key_value_prompt, build_needle_prompt, needle_span
from shared.registry import Card, Paper

__all__ = ["RetrievalHeads", "RetrievalHeadsSpec", "aggregate", "needle_span", "retrieval_score", "rouge1_recall"]

Head = tuple[int, int]

PAPER = Paper(
    title="Retrieval Head Mechanistically Explains Long-Context Factuality",
    venue="ICLR",
    year=2025,
    url="https://arxiv.org/abs/2404.15574",
)


class NeedleText(BaseModel):
    """A needle of one's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sentence: str = Field(min_length=1, max_length=2000)
    question: str = Field(min_length=1, max_length=2000)
    answer: str = Field(min_length=1, max_length=1000, description="The words of the sentence that answer.")


class RetrievalHeadsSpec(Spec):
    """Samples, how they are scored, and what is hidden afterwards."""

    protocol: Literal["niah", "kv"] = Field("kv", description="Needles in haystacks, or keys in JSON.")
    samples: int = Field(16, ge=1, le=1000, description="Of the kv protocol; niah has needles × lengths × depths.")
    pairs: int = Field(10, ge=2, le=500, description="Entries of a kv object.")
    shots: int = Field(3, ge=0, le=8, description="Solved examples of kv.")
    key_chars: int = Field(32, ge=2, le=64, description="Letters and digits of a kv key.")
    value_words: int = Field(8, ge=0, le=40, description="Words of a kv value; 0 means eight random letters.")
    lengths: list[int] = Field([350, 700, 1200], min_length=1, max_length=40, description="Tokens of niah prompts.")
    depths: list[int] = Field([0, 25, 50, 75, 100], min_length=1, max_length=40, description="Percent, of niah.")
    needles: list[NeedleText] = Field(default_factory=list, max_length=20, description="Own needles instead of ours.")
    corpus: str | None = Field(None, max_length=4_000_000, description="Own haystack instead of generated prose.")
    mode: ScoreMode = Field(
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


class RetrievalHeads(Experiment[RetrievalHeadsSpec]):
    """Finds retrieval heads, and shows what the model can't do without them."""

    In = RetrievalHeadsSpec
    route: ClassVar[str] = "heads/retrieval"
    card: ClassVar[Card] = Card(
        name="retrieval-heads", task="probe", licence="Apache-2.0", paper=PAPER,
        summary="Finds the attention heads that copy from distant context, and what the model can't do without them.",
        notes=(
            "Scores every query head; a HeadPlan takes the largest of each key/value group.",
            "Teacher-forced by default: the answer is read, not made in 50 steps; `teacher_forced: false` makes it.",
            NO_GRAPH,
        ),
        example={
            "lm": EXAMPLE_LM, "seed": 0, "protocol": "kv", "samples": 8, "pairs": 5, "shots": 2, "key_chars": 4,
            "value_words": 0, "hide": [2], "hide_samples": 8,
        },
    )  # fmt: skip

    def cost(self, spec: RetrievalHeadsSpec, subject: StudiedModel) -> Cost:
        """Forced, what is new of a sample, and its tail; generating, `steps` at most; one forward per hidden set."""
        samples = list(draw_samples(spec, subject))
        total, known = Cost(0, 0, 0), list[int]()
        for sample in samples:
            read, said = sample.prompt.ids, sample.prompt.answer_ids
            if spec.teacher_forced:
                whole = [*read, *said[:-1]]
                parts = plan_pieces(known, whole, len(said), together=subject.rows_are_independent)
                known = whole[: parts[-1].start]
                total += Cost(len(parts), sum(map(len, parts)))
            else:
                total += Cost(1 + spec.steps, len(read) - 1 + spec.steps)
        draws = [len(_draw_controls(spec, size, subject.layers * subject.heads)) for size in spec.hide]
        variants = sum(1 + n for n in draws) + bool(spec.hide)
        for sample in samples[:: _stride(spec, len(samples))][: spec.hide_samples]:
            total += Cost(1, len(sample.prompt.ids) + len(sample.prompt.answer_ids) - 1) * variants
        return total

    def run(self, spec: RetrievalHeadsSpec, subject: StudiedModel, progress: Progress) -> Report:
        """Score all samples, then hide what scored."""
        samples, reader = list(draw_samples(spec, subject)), PrefixReader(subject)
        scored = list(
            progress.each(samples, lambda s: _cell_content(spec, s), lambda s: _score_sample(spec, reader, s))
        )
        scores = [value["scores"] for _, value in scored] or np.zeros((0, subject.layers, subject.heads))
        recalls = [value["recall"] for _, value in scored]
        found = aggregate(scores, recalls, gate=-1.0 if spec.teacher_forced else 0.5)
        study = MaskingStudy(spec, subject, found, samples, progress)
        hidden = study.run() if found.kept and spec.hide and not progress.stopped else {}
        return build_report(spec, subject, [(s, v) for s, v in scored], found, hidden)


def draw_samples(spec: RetrievalHeadsSpec, subject: StudiedModel) -> Iterator[Sample]:
    """All prompts of the protocol."""
    codec = subject.tokenizer
    if spec.protocol == "kv":
        for i in range(spec.samples):
            seed = spec.seed * 1_000_003 + i
            yield Sample(
                build_key_value_prompt(
                    codec,
                    pairs=spec.pairs,
                    seed=seed,
                    shots=spec.shots,
                    key_chars=spec.key_chars,
                    value_words=spec.value_words,
                ),
                {"sample": i},
            )
        return
    needles = [Needle(n.sentence, n.question, n.answer) for n in spec.needles] or NEEDLES
    for n, what in enumerate(needles):
        for length in spec.lengths:
            subject.check_window(length, "lengths")
            for depth in spec.depths:
                prompt = build_needle_prompt(codec, what, length, depth, corpus=spec.corpus, seed=spec.seed + n)
                yield Sample(prompt, {"needle": n, "length": length, "depth": depth})


def _cell_content(spec: RetrievalHeadsSpec, sample: Sample) -> dict[str, Any]:
    """What a cell depends on: the prompt itself and how it is scored."""
    how = (spec.mode, spec.top, spec.teacher_forced, 0 if spec.teacher_forced else spec.steps)
    return {"score": how, "ids": sample.prompt.ids, "answer": sample.prompt.answer_ids, "span": sample.prompt.span}


def _score_sample(spec: RetrievalHeadsSpec, reader: PrefixReader, sample: Sample) -> dict[str, Any]:
    prompt, subject = sample.prompt, reader.subject
    answered = (
        trace_known_answer(reader, prompt, top=spec.top)
        if spec.teacher_forced
        else generate_answer(subject, prompt, steps=spec.steps, top=spec.top)
    )
    recall, likely = _recall(subject, prompt, answered), answered.forced
    scores = np.zeros((subject.layers, subject.heads))
    if prompt.span is None:
        recall = -2.0  # below every gate: the answer's place is not known, so nobody can be credited
    elif answered.tokens:
        scores = score_copies(answered.looked, prompt.ids, answered.tokens, prompt.span, spec.mode)
    return {
        "scores": to_matrix(scores),
        "recall": recall,
        "nll": likely.nll if likely else None,
        "accuracy": likely.accuracy if likely else recall,
        "answer": subject.tokenizer.decode(answered.tokens),
    }


def _recall(subject: StudiedModel, prompt: Prompt, answered: TracedAnswer) -> float:
    return rouge1_recall(prompt.answer, subject.tokenizer.decode(answered.tokens))


def _draw_controls(spec: RetrievalHeadsSpec, size: int, heads: int) -> list[tuple[int, ...]]:
    """Different sets of `size` places in a ranking of `heads`, as controls; fewer where there are not so many.

    Section 4: from outside the top 100, in small models from outside the top 15 %.
    """
    outside = range(min(100, round(0.15 * heads)), heads)
    rng, found = random.Random(f"{spec.seed}/{size}"), set[tuple[int, ...]]()
    size = min(size, len(outside))
    while len(found) < min(spec.controls, math.comb(len(outside), size)):
        found.add(tuple(sorted(rng.sample(outside, size))))
    return sorted(found)


def _stride(spec: RetrievalHeadsSpec, samples: int) -> int:
    """Samples of the masking study are spread over all: every so many-th."""
    return max(samples // spec.hide_samples, 1)


@dataclass(frozen=True)
class MaskingStudy:
    """The masking experiment (section 4): the top heads hidden, and as many random ones, ten times and more."""

    spec: RetrievalHeadsSpec
    subject: StudiedModel
    found: Aggregate
    samples: list[Sample]
    progress: Progress

    def run(self) -> dict[str, list[AnswerScore]]:
        """Variant → what it does to each sample: `none`, `top K`, `random K #i`."""
        chosen = self.samples[:: _stride(self.spec, len(self.samples))][: self.spec.hide_samples]
        results: dict[str, list[AnswerScore]] = {}
        for name, heads in self.variants().items():
            for _, value in self.progress.each(
                chosen,
                lambda s, heads=heads: {"hidden": heads, "phase": self.spec.phase, **_cell_content(self.spec, s)},  # type: ignore[misc]
                lambda s, heads=heads: self._measured(s, heads),  # type: ignore[misc]
            ):
                results.setdefault(name, []).append(AnswerScore(**value))
        return results

    def variants(self) -> dict[str, list[Head]]:
        """The sets that are hidden."""
        found: dict[str, list[Head]] = {"none": []}
        for size in self.spec.hide:
            found[f"top {size}"] = self.found.ranking[:size]
            for i, drawn in enumerate(_draw_controls(self.spec, size, len(self.found.ranking))):
                found[f"random {size} #{i}"] = sorted(self.found.ranking[place] for place in drawn)
        return found

    def _measured(self, sample: Sample, heads: list[Head]) -> dict[str, float]:
        likely = score_known_answer(self.subject, sample.prompt, heads, self.spec.phase)
        return {"nll": likely.nll, "accuracy": likely.accuracy}
