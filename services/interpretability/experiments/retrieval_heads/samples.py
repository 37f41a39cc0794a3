"""Samples of the retrieval-heads experiment: the prompts of its two protocols, and what their cells depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.interpretability.core.studied_model import StudiedModel
from services.interpretability.experiments.retrieval_heads.spec import RetrievalHeadsSpec
from shared.lm.niah_prompts import NEEDLES, Needle, Prompt, build_key_value_prompt, build_needle_prompt


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt of the protocol, with the facts that identify it (needle, length, depth, or a number)."""

    prompt: Prompt
    facts: Mapping[str, Any]


def draw_samples(spec: RetrievalHeadsSpec, subject: StudiedModel) -> Iterator[Sample]:
    """Yield all prompts of the protocol."""
    codec = subject.tokenizer
    if spec.protocol == "kv":
        for i in range(spec.samples):
            options = spec.model_dump(include={"pairs", "shots", "key_chars", "value_words"})
            yield Sample(build_key_value_prompt(codec, seed=spec.seed * 1_000_003 + i, **options), {"sample": i})
        return
    needles = [Needle(n.sentence, n.question, n.answer) for n in spec.needles] or NEEDLES
    for n, what in enumerate(needles):
        for length in spec.lengths:
            subject.check_window(length, "lengths")
            for depth in spec.depths:
                prompt = build_needle_prompt(codec, what, length, depth, corpus=spec.corpus, seed=spec.seed + n)
                yield Sample(prompt, {"needle": n, "length": length, "depth": depth})


def cell_content(spec: RetrievalHeadsSpec, sample: Sample) -> dict[str, Any]:
    """Return what a sample's cell depends on: the prompt itself and how it is scored."""
    how = (spec.mode, spec.top, spec.teacher_forced, 0 if spec.teacher_forced else spec.steps)
    return {"score": how, "ids": sample.prompt.ids, "answer": sample.prompt.answer_ids, "span": sample.prompt.span}
