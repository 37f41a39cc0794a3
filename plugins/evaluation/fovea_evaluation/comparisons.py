"""Pairwise judge: which of two passages answers a query better, asked in both orders."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from fovea.errors import InvalidOption
from fovea_evaluation.answers import map_concurrently
from fovea_evaluation.metrics.preferences import Preference
from services.relevance_judge.chat_client import ChatClient, ChatReply
from services.relevance_judge.judge import build_messages
from services.relevance_judge.metrics.agreement import Qrels
from services.relevance_judge.prompt_template import get_template, make_fence, render_prompt
from shared.registry import CallContext

FORMS = (("A", " A", "a", " a"), ("B", " B", "b", " b"))

MAX_PAIRS = 500_000
"""Pairs of labelled passages that comparisons are drawn from: TREC's pools have 75 million, which fill any memory."""


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


def compare_pairs(
    client: ChatClient,
    pairs: Sequence[PassagePair],
    run: CallContext,
    *,
    template: str,
    llm: str | None,
    seed: int,
    passage_chars: int,
) -> list[Preference]:
    """Ask a client's language model about each pair in both orders, several at a time."""
    form = get_template(template)
    if form.kind != "preference":
        raise InvalidOption(f"The template {form.id} is for {form.kind}, not for preference.")

    def ask(order: tuple[str, str, str]) -> float:
        """Probability that the passage shown first is called better."""
        query, first, second = order
        mark = make_fence(query, first + second, seed)
        shown = render_prompt(form, query, first, mark=mark, other=second)
        return read_choice(client.chat(build_messages(shown), run, model=llm, max_tokens=1, seed=seed, logprobs=True))

    texts = [(one.query, one.first[:passage_chars], one.second[:passage_chars]) for one in pairs]
    orders = [order for query, a, b in texts for order in ((query, a, b), (query, b, a))]
    found = map_concurrently(ask, orders, run)
    return [
        Preference(forward, 1 - backward, len(pair.first.split()), len(pair.second.split()), pair.label)
        for pair, forward, backward in zip(pairs, found[::2], found[1::2], strict=True)
    ]


def read_choice(reply: ChatReply) -> float:
    """Probability of A against B: by log-probabilities where the endpoint gives them, else 1, 0, or 0.5 for neither."""
    if reply.first_logprobs:
        least = min(reply.first_logprobs.values())
        odds = [sum(math.exp(reply.first_logprobs.get(form, least)) for form in forms) for forms in FORMS]
        return odds[0] / sum(odds) if any(odds) else 0.5  # endpoints say -9999 for none
    letter = re.match(r"\W*([AB]\b|[ab]\W*$)", reply.text)  # not of a word, such as Answer, Both or "a passage"
    return 0.5 if letter is None else float(letter[1] in "Aa")


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
    cap = max(math.isqrt(2 * MAX_PAIRS // max(len(groups), 1)), 2)
    for docids in groups.values():
        if len(docids) > cap:
            docids[:] = [docids[place] for place in draw.choice(len(docids), cap, replace=False)]
    found = [(qid, *pair) for qid, docids in groups.items() for pair in combinations(docids, 2)]
    sides: list[list[tuple[str, str, str]]] = [[], []]
    for place in draw.permutation(len(found)):
        qid, first, second = found[place]
        turned = (qid, second, first) if draw.random() < 0.5 else (qid, first, second)
        sides[labels[qid, first] == labels[qid, second]].append(turned)
    half = max(most // 2, most - len(sides[0]))
    chosen = [*sides[1][:half], *sides[0][: most - min(half, len(sides[1]))]]
    return [
        PassagePair(topics[q], passages[a], passages[b], int(np.sign(labels[q, a] - labels[q, b])), (q, a, b))
        for q, a, b in chosen
    ]
