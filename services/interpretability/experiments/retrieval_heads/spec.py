"""Spec of the retrieval-heads experiment, the prompts of its two protocols, and what their cells depend on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fovea.errors import InvalidOption
from services.interpretability.attention.retrieval_score import ScoreMode
from services.interpretability.core.experiment import Spec
from services.interpretability.core.studied_model import StudiedModel
from shared.lm.niah_prompts import NEEDLES, QUESTION_TOKENS, Needle, Prompt, build_key_value_prompt, build_needle_prompt
from shared.registry import Paper

PAPER = Paper.on_arxiv("Retrieval Head Mechanistically Explains Long-Context Factuality", 2025, "2404.15574", "ICLR")
Percent = Annotated[int, Field(ge=0, le=100)]


class NeedleText(BaseModel):
    """A user-defined needle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sentence: str = Field(min_length=1, max_length=2000)
    question: str = Field(min_length=1, max_length=2000)
    answer: str = Field(min_length=1, max_length=1000, description="The words of the sentence that answer.")


class RetrievalHeadsSpec(Spec):
    """Protocol, samples, scoring and masking study."""

    protocol: Literal["niah", "kv"] = Field("kv", description="Needles in haystacks, or keys in JSON.")
    samples: int = Field(16, ge=1, le=1000, description="Of the kv protocol; niah has needles × lengths × depths.")
    pairs: int = Field(10, ge=2, le=500, description="Entries of a kv object.")
    shots: int = Field(3, ge=0, le=8, description="Solved examples of kv.")
    key_chars: int = Field(32, ge=2, le=64, description="Letters and digits of a kv key.")
    value_words: int = Field(8, ge=0, le=40, description="Words of a kv value; 0 means eight random letters.")
    lengths: list[int] = Field([350, 700, 1200], min_length=1, max_length=40, description="Tokens of niah prompts.")
    depths: list[Percent] = Field([0, 25, 50, 75, 100], min_length=1, max_length=40, description="Percent, of niah.")
    needles: list[NeedleText] = Field(default_factory=list, max_length=20, description="Own needles instead of ours.")
    corpus: str | None = Field(None, max_length=4_000_000, description="Own haystack instead of generated prose.")
    mode: ScoreMode = Field(
        "positions", description="positions, types (the paper's formula) or count (the released code's)."
    )
    top: int = Field(1, ge=1, le=50, description="A copy counts where any of so many largest positions qualifies.")
    teacher_forced: bool = Field(True, description="Score along the known answer; false generates, as the paper does.")
    steps: int = Field(50, ge=1, le=500, description="Most tokens that are generated.")
    hide: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=list, max_length=8, description="Masking study: hide so many top heads, against random ones."
    )
    hide_samples: int = Field(4, ge=1, le=100, description="Samples of the masking study.")
    controls: int = Field(10, ge=10, le=100, description="Random draws of as many heads, for each entry of `hide`.")
    phase: Literal["all", "decode"] = Field("all", description="Hide heads always, or only where the answer is made.")
    share: float = Field(0.5, gt=0, le=1, description="Share of key/value heads that the HeadPlan keeps in full.")


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
        least = QUESTION_TOKENS + len(codec.encode(f" {what.sentence}", special=False)) + 1
        for length in spec.lengths:
            subject.check_window(length, "lengths")
            if length < least:
                detail = f"A prompt of {length} tokens has no room for prose around the needle; {least} are the least."
                raise InvalidOption(detail, field="lengths")
            for depth in spec.depths:
                prompt = build_needle_prompt(codec, what, length, depth, corpus=spec.corpus, seed=spec.seed + n)
                yield Sample(prompt, {"needle": n, "length": length, "depth": depth})


def cell_content(spec: RetrievalHeadsSpec, sample: Sample) -> dict[str, Any]:
    """Return what a sample's cell depends on: the prompt itself and how it is scored."""
    how = (spec.mode, spec.top, spec.teacher_forced, 0 if spec.teacher_forced else spec.steps)
    return {"score": how, "ids": sample.prompt.ids, "answer": sample.prompt.answer_ids, "span": sample.prompt.span}
