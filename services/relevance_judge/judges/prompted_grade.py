"""Prompted-grade judge: a chat model states the grade in its answer. Works with any OpenAI-compatible endpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from services.relevance_judge.chat_client import ChatReply, Message
from services.relevance_judge.judge import EXAMPLE, NO_GRAPH, PAPER, Judge, build_messages, fit_passage
from services.relevance_judge.parsing.grades import ParsedGrade
from services.relevance_judge.prompt_template import Template, make_fence, render_prompt
from services.relevance_judge.schemas import JudgeIn, Pair, Verdict
from shared.registry import CallContext, Card

RETRY_TEMPERATURE = 0.7
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
        return judge_by_answer(self, self.select_template(request.template), pair, request, run)


@dataclass
class _Transcript:
    """The conversations over one pair."""

    answers: list[str] = field(default_factory=list)
    tokens: int = 0
    model: str = ""
    flags: list[str] = field(default_factory=list)

    def add(self, reply: ChatReply) -> None:
        self.answers.append(reply.text)
        self.tokens += reply.tokens
        self.model = reply.model


def judge_by_answer(judge: Judge, template: Template, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
    """Judge a pair with one template: ask until an answer holds a grade, for each criterion."""
    transcript, grades, tries, last = _Transcript(), [], 1, ParsedGrade(None, "none", "absent")
    for criterion in template.criteria.values() or [""]:
        for attempt in range(request.retries + 1):
            tries = max(tries, attempt + 1)
            last = template.read_grade(_converse(judge, template, pair, request, run, transcript, criterion, attempt))
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
        answer=transcript.answers[-1],
        rationale=transcript.answers if request.rationale else None,
        template=template.pinned_id,
        llm=transcript.model,
        attempts=tries,
        tokens=transcript.tokens,
        flags=transcript.flags,
    )


def _converse(
    judge: Judge,
    template: Template,
    pair: Pair,
    request: JudgeIn,
    run: CallContext,
    transcript: _Transcript,
    criterion: str,
    attempt: int,
) -> str:
    """Hold one whole conversation; return its last answer."""
    seed = None if request.seed is None else request.seed + attempt

    def ask(messages: list[Message]) -> ChatReply:
        return judge.client.chat(
            messages,
            run,
            model=request.llm,
            max_tokens=template.max_tokens,
            temperature=RETRY_TEMPERATURE if attempt else 0.0,
            seed=seed,
        )

    def converse(passage: str) -> list[ChatReply]:
        shown = render_prompt(
            template, pair.query, passage, mark=make_fence(pair.query, passage, seed), criterion=criterion
        )
        messages, replies = build_messages(shown), []
        for turn in (*shown.turns[1:], None):
            replies.append(ask(messages))
            if turn is not None:
                messages += [{"role": "assistant", "content": replies[-1].text}, {"role": "user", "content": turn}]
        return replies

    replies, flags = fit_passage(pair.passage, request.passage_chars, converse)
    for reply in replies:
        transcript.add(reply)
    transcript.flags = sorted({*transcript.flags, *flags})
    return replies[-1].text
