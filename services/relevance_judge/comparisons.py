"""Pairwise judge: which of two passages answers a query better, asked in both orders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from fovea.errors import InvalidOption
from services.relevance_judge.chat_client import ChatClient, ChatReply
from services.relevance_judge.judge import build_messages, map_concurrently
from services.relevance_judge.metrics.agreement import Qrels
from services.relevance_judge.metrics.preferences import Preference
from services.relevance_judge.prompt_template import Template, get_template, make_fence, render_prompt
from shared.registry import CallContext

FORMS = (("A", " A", "a", " a"), ("B", " B", "b", " b"))


@dataclass(frozen=True)
class PassagePair:
    """Two passages for one query.

    Attributes:
        label: 1, −1 or 0 if people prefer the first, the second, neither.
        names: Ids of query, first and second passage, where there are any.
    """

    query: str
    first: str
    second: str
    label: int | None = None
    names: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class PairwiseJudge:
    """Compares passages with the language model behind a client."""

    client: ChatClient
    template: str = "preference"
    llm: str | None = None
    seed: int | None = None
    passage_chars: int = 3000

    def compare(self, pairs: Sequence[PassagePair], run: CallContext) -> list[Preference]:
        """Ask about each pair in both orders, several at a time."""
        template = get_template(self.template)
        if template.kind != "preference":
            raise InvalidOption(f"The template {template.id} is for {template.kind}, not for preference.")
        orders = [(pair, turned) for pair in pairs for turned in (False, True)]
        found = map_concurrently(lambda one: self._ask(template, one[0], run, turned=one[1]), orders, run)
        return [
            Preference(forward, 1 - backward, len(pair.first.split()), len(pair.second.split()), pair.label)
            for pair, forward, backward in zip(pairs, found[::2], found[1::2], strict=True)
        ]

    def _ask(self, template: Template, pair: PassagePair, run: CallContext, *, turned: bool) -> float:
        """Probability that the passage shown first is called better."""
        texts = (pair.second, pair.first) if turned else (pair.first, pair.second)
        first, second = (text[: self.passage_chars] for text in texts)
        mark = make_fence(pair.query, first + second, self.seed)
        shown = render_prompt(template, pair.query, first, mark=mark, other=second)
        options: dict[str, Any] = {"model": self.llm, "max_tokens": 1, "seed": self.seed, "logprobs": True}
        return read_choice(self.client.chat(build_messages(shown), run, **options))


def read_choice(reply: ChatReply) -> float:
    """Probability of A against B: by log-probabilities where the endpoint gives them, else 1, 0, or 0.5 for neither."""
    if reply.first_logprobs:
        least = min(reply.first_logprobs.values())
        odds = [sum(math.exp(reply.first_logprobs.get(form, least)) for form in forms) for forms in FORMS]
        return odds[0] / (odds[0] + odds[1])
    letter = reply.text.strip().strip("*\"'`(.").upper()[:1]
    return {"A": 1.0, "B": 0.0}.get(letter, 0.5)


def sample_comparisons(
    topics: Mapping[str, str], passages: Mapping[str, str], labels: Qrels, *, most: int, seed: int
) -> list[PassagePair]:
    """Draw `most` pairs of labelled passages of one query: half of equal grade, which show biases, half of unequal.

    The seed makes the draw, and which passage stands first, repeatable.
    """
    draw = np.random.default_rng(seed)
    groups: dict[str, list[str]] = {}
    for qid, docid in labels:
        if qid in topics and docid in passages:
            groups.setdefault(qid, []).append(docid)
    found = [(qid, *pair) for qid, docids in groups.items() for pair in combinations(docids, 2)]
    sides: list[list[tuple[str, str, str]]] = [[], []]
    for place in draw.permutation(len(found)):
        qid, first, second = found[place]
        turned = (qid, second, first) if draw.random() < 0.5 else (qid, first, second)
        sides[labels[qid, first] == labels[qid, second]].append(turned)
    half = max(most // 2, most - len(sides[0]))
    chosen = [*sides[1][:half], *sides[0][: most - min(half, len(sides[1]))]]
    found_pairs = []
    for qid, first, second in chosen:
        label = int(np.sign(labels[qid, first] - labels[qid, second]))
        found_pairs.append(PassagePair(topics[qid], passages[first], passages[second], label, (qid, first, second)))
    return found_pairs
