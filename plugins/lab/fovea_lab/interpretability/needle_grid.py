"""Needle-grid experiment: how much of a hidden sentence is recalled, by context length and depth.

With heads masked in the model here, or under an attention method of llm-longctx, which is called over the OpenAI
protocol. The prompts are those of `shared.lm.niah_prompts`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from fovea.errors import InvalidOption
from fovea_lab.interpretability.endpoint import LongctxEndpoint
from fovea_lab.needles import NeedleCell, map_recall
from services.interpretability.attention.retrieval_score import rouge1_recall
from services.interpretability.core.experiment import Cost, Experiment, Progress, Spec, probe_card
from services.interpretability.core.report import Report, Scalar, Table
from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.retrieval_heads.spec import PAPER, NeedleText, Percent
from services.interpretability.generation.forced_decoding import generate_answer, score_known_answer
from shared.lm.niah_prompts import NEEDLES, QUESTION_TOKENS, Needle, Prompt
from shared.registry import Card, LoadContext


class NeedleGridSpec(Spec):
    """Lengths, depths and needles; masked heads or an attention method."""

    lengths: list[int] = Field([350, 700, 1200], min_length=1, max_length=40, description="Tokens of the prompts.")
    depths: list[Percent] = Field([0, 50, 100], min_length=1, max_length=40, description="Percent.")
    needles: list[NeedleText] = Field(
        default_factory=list, max_length=20, description="Own needles; left out, our first."
    )
    corpus: str | None = Field(None, max_length=4_000_000, description="Own haystack instead of generated prose.")
    heads: list[list[int]] = Field(
        default_factory=list, max_length=4096, description="Heads to hide, as [layer, head]."
    )
    phase: Literal["all", "decode"] = Field("all", description="Hide them always, or only where the answer is made.")
    teacher_forced: bool = Field(True, description="Score along the known answer; false generates it.")
    steps: int = Field(50, ge=1, le=500, description="Most tokens that are generated.")
    longctx: dict[str, Any] | None = Field(
        None,
        description="An attention method of llm-longctx (`method` and its knobs); it is asked instead, and generates.",
    )


class NeedleGrid(Experiment[NeedleGridSpec]):
    """Measures recall by context length and depth."""

    In = NeedleGridSpec
    route: ClassVar[str] = "needle"
    endpoint: LongctxEndpoint
    card: ClassVar[Card] = probe_card(
        "needle-grid",
        "Shows how much of a hidden sentence a model recalls, with heads hidden or a long-context method on.",
        PAPER,
        "Generated answers are compared by ROUGE-1 recall, forced ones by the share of right tokens.",
        "One needle and one seed make a map of one sample per cell: use several before you compare methods.",
        lengths=[500, 700],
        depths=[0, 100],
    )

    @classmethod
    def load(cls, context: LoadContext) -> Self:
        loaded = super().load(context)
        options = context.options
        loaded.endpoint = LongctxEndpoint(
            options.get("judge_base_url", "http://127.0.0.1:8080"), options.get("judge_api_key")
        )
        return loaded

    def cost(self, spec: NeedleGridSpec, subject: StudiedModel) -> Cost:
        if spec.longctx is not None and spec.heads:
            detail = "heads are hidden in the model here, and longctx asks another one, which hides none."
            raise InvalidOption(detail, hint="Leave one of them out.", field="heads")
        total = Cost(0, 0, 0)
        for _, prompt in _list_prompts(spec, subject):
            read, answer = len(prompt.ids), len(prompt.answer_ids)
            if spec.longctx is not None:
                total += Cost(0, 0)
            elif spec.teacher_forced:
                total += Cost(1, read + answer - 1)
            else:
                total += Cost(1 + spec.steps, read - 1 + spec.steps)
        return total

    def run(self, spec: NeedleGridSpec, subject: StudiedModel, progress: Progress) -> Report:
        heads = subject.check_heads(spec.heads)
        how = spec.model_dump(mode="json", include={"heads", "phase", "teacher_forced", "steps", "longctx"})
        cells = list(
            progress.each(
                _list_prompts(spec, subject),
                lambda one: {**how, "ids": one[1].ids, "answer": one[1].answer_ids},
                lambda one: self._measure(spec, subject, one[1], heads),
            )
        )
        recalls = [(cell, value["recall"]) for (cell, _), value in cells]
        answers = [(*cell, value["recall"], value["answer"]) for (cell, _), value in cells]
        return Report(
            title="Needle grid",
            warnings=_warnings(spec, recalls),
            scalars={
                "recall": Scalar(value=_mean(recalls), note="Mean of all cells."),
                "cells": Scalar(value=len(recalls)),
                "heads_hidden": Scalar(value=len(heads)),
            },
            grids=[map_recall(spec.lengths, spec.depths, recalls)],
            tables=[
                Table.of("answers", "needle, length, depth, recall, answer", answers, "The answer in each cell."),
            ],
        )

    def _measure(
        self, spec: NeedleGridSpec, subject: StudiedModel, prompt: Prompt, heads: list[tuple[int, int]]
    ) -> Any:
        if spec.longctx is not None:
            model = subject.name if spec.lm else None
            text = self.endpoint.chat(prompt.user, max_tokens=spec.steps, longctx=spec.longctx, model=model)
        elif spec.teacher_forced:
            return {"recall": score_known_answer(subject, prompt, heads, spec.phase).accuracy, "answer": None}
        else:
            answer = generate_answer(subject, prompt, steps=spec.steps, masked=heads, phase=spec.phase)
            text = subject.tokenizer.decode(answer.tokens)
        return {"recall": rouge1_recall(prompt.answer, text), "answer": text}


def _list_prompts(spec: NeedleGridSpec, subject: StudiedModel) -> list[tuple[NeedleCell, Prompt]]:
    needles = [Needle(n.sentence, n.question, n.answer) for n in spec.needles] or list(NEEDLES[:1])
    sizes = (len(subject.tokenizer.encode(f" {one.sentence}", special=False)) for one in needles)
    least = QUESTION_TOKENS + max(sizes) + 1
    for length in spec.lengths:
        if length < least:
            detail = f"A prompt of {length} tokens has no room for prose around the needle; {least} are the least."
            raise InvalidOption(detail, field="lengths")
        subject.check_window(length, "lengths")
    cells = [
        NeedleCell(n, length, depth) for n in range(len(needles)) for length in spec.lengths for depth in spec.depths
    ]
    return [(cell, cell.build_prompt(subject.tokenizer, needles, spec.corpus, spec.seed)) for cell in cells]


def _mean(recalls: Sequence[tuple[NeedleCell, float]]) -> float | None:
    return float(np.mean([recall for _, recall in recalls])) if recalls else None


def _warnings(spec: NeedleGridSpec, recalls: Sequence[tuple[NeedleCell, float]]) -> list[str]:
    warnings = []
    if len(spec.needles) < 2:
        warnings.append("One needle: every cell is a single sample.")
    if recalls and not spec.heads and spec.longctx is None and (_mean(recalls) or 0) < 0.5:
        warnings.append("The model recalls less than half with nothing hidden: there is little to lose.")
    return warnings
