"""Prompted-grade judge: a chat model states the grade in its answer. Works with any OpenAI-compatible endpoint."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from services.relevance_judge.chat_client import ChatReply
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
        notes=("Useless with models of about a hundred million parameters; use query-likelihood there.", NO_GRAPH),
        example=EXAMPLE,
    )
    default: ClassVar[str] = "direct"
    kinds: ClassVar[tuple[str, ...]] = ("prompted-grade",)

    def verdict(self, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
        return judge_by_answer(self, self.select_template(request.template), pair, request, run)


def judge_by_answer(judge: Judge, template: Template, pair: Pair, request: JudgeIn, run: CallContext) -> Verdict:
    """Judge a pair with one template: ask until an answer holds a grade, for each criterion."""
    asked = _Conversations(judge, template, pair, request, run)
    grades, tries, last = [], 1, ParsedGrade(None, "none", "absent")
    for criterion in template.criteria.values() or [""]:
        for attempt in range(request.retries + 1):
            tries = max(tries, attempt + 1)
            last = template.read_grade(asked.hold(criterion, attempt))
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
        answer=asked.replies[-1].text,
        rationale=[reply.text for reply in asked.replies] if request.rationale else None,
        template=template.pinned_id,
        llm=asked.replies[-1].model,
        attempts=tries,
        tokens=sum(reply.tokens for reply in asked.replies),
        flags=sorted(asked.flags),
    )


@dataclass
class _Conversations:
    """The conversations over one pair, with all replies in order."""

    judge: Judge
    template: Template
    pair: Pair
    request: JudgeIn
    run: CallContext
    replies: list[ChatReply] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)

    def hold(self, criterion: str, attempt: int) -> str:
        """Hold one whole conversation; return its last answer."""
        seed = None if self.request.seed is None else self.request.seed + attempt
        temperature = RETRY_TEMPERATURE if attempt else 0.0
        options: dict[str, Any] = {"model": self.request.llm, "max_tokens": self.template.max_tokens, "seed": seed}

        def converse(passage: str) -> list[ChatReply]:
            mark = make_fence(self.pair.query, passage, seed)
            shown = render_prompt(self.template, self.pair.query, passage, mark=mark, criterion=criterion)
            messages, replies = build_messages(shown), []
            for turn in (*shown.turns[1:], None):
                replies.append(self.judge.client.chat(messages, self.run, temperature=temperature, **options))
                if turn is not None:
                    messages += [{"role": "assistant", "content": replies[-1].text}, {"role": "user", "content": turn}]
            return replies

        replies, flags = fit_passage(self.pair.passage, self.request.passage_chars, converse)
        self.replies += replies
        self.flags.update(flags)
        return replies[-1].text
