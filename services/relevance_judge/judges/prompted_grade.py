"""Asks a chat model for the grade and reads it out of the answer. Any OpenAI-compatible endpoint will do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from services.relevance_judge.chat_client import Message, Said
from services.relevance_judge.judge import EXAMPLE, NO_GRAPH, PAPER, Judge, named, opening, shrinking
from services.relevance_judge.parsing.grades import Parsed
from services.relevance_judge.prompt_template import Template, fence, render
from services.relevance_judge.schemas import JudgeIn, Pair, Verdict
from shared.registry import CallContext, Card

__all__ = ["PromptedGrade", "asked"]

WARM = 0.7
"""Temperature of further tries: at 0 the same invalid answer would come again."""


class PromptedGrade(Judge):
    """Grades as stated by the model."""

    card: ClassVar[Card] = Card(
        name="prompted-grade",
        task="judge",
        paper=PAPER,
        licence="Apache-2.0",
        summary="Asks a chat model for a grade 0–3 and reads it out of the answer.",
        notes=(
            "Useless with models of about a hundred million parameters; use query-likelihood there.",
            NO_GRAPH,
        ),
        example=EXAMPLE,
    )
    default: ClassVar[str] = "direct"
    kinds: ClassVar[tuple[str, ...]] = ("prompted-grade",)

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        """Ask until an answer holds a grade, at most `retries` times more."""
        return asked(self, self.chosen(request.template), pair, request, run)


@dataclass
class _Talk:
    """What was said over one pair."""

    answers: list[str] = field(default_factory=list)
    tokens: int = 0
    model: str = ""
    flags: list[str] = field(default_factory=list)

    def note(self, said: Said) -> None:
        self.answers.append(said.text)
        self.tokens += said.tokens
        self.model = said.model


def asked(judge: Judge, chosen: Template, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
    """The verdict of one template; also what each member of an ensemble does."""
    talk, grades, tries, last = _Talk(), [], 1, Parsed(None, "none", "absent")
    for criterion in chosen.criteria.values() or [""]:
        for attempt in range(request.retries + 1):
            tries = max(tries, attempt + 1)
            last = chosen.read(_talked(judge, chosen, pair, request, run, talk, criterion, attempt))
            if last.grade is not None:
                grades.append(last.grade)
                break
        else:
            break  # one criterion without a grade leaves the pair without one
    valid = last.grade is not None
    return Verdict(
        grade=math.floor(sum(grades) / len(grades) + 0.5) if valid else None,
        valid=valid,
        reason=last.reason,
        answer=talk.answers[-1],
        rationale=talk.answers if request.rationale else None,
        template=named(chosen),
        llm=talk.model,
        attempts=tries,
        tokens=talk.tokens,
        flags=talk.flags,
    )


def _talked(
    judge: Judge,
    chosen: Template,
    pair: Pair,
    request: JudgeIn,
    run: CallContext,
    talk: _Talk,
    criterion: str,
    attempt: int,
) -> str:
    """One whole conversation; its last answer."""
    seed = None if request.seed is None else request.seed + attempt

    def say(messages: list[Message]) -> Said:
        return judge.endpoint.chat(
            messages,
            run,
            model=request.llm,
            max_tokens=chosen.max_tokens,
            temperature=WARM if attempt else 0.0,
            seed=seed,
        )

    def converse(passage: str) -> list[Said]:
        shown = render(chosen, pair.query, passage, mark=fence(pair.query, passage, seed), criterion=criterion)
        messages, said = opening(shown), []
        for turn in (*shown.turns[1:], None):
            said.append(say(messages))
            if turn is not None:
                messages += [{"role": "assistant", "content": said[-1].text}, {"role": "user", "content": turn}]
        return said

    answers, flags = shrinking(pair.passage, request.passage_chars, converse)
    for said in answers:
        talk.note(said)
    talk.flags = sorted({*talk.flags, *flags})
    return answers[-1].text
