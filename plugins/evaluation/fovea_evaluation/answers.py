"""Evaluation of answers: nuggets made from passages and found in answers, and claims supported by what they cite.

Asks a language model through templates, or compares texts without one (`claims`).
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from fovea_evaluation import claims
from fovea_evaluation.metrics.answers import (
    SUPPORT_VALUES,
    Importance,
    NuggetScores,
    SentenceSupport,
    Support,
    score_answer,
)
from services.relevance_judge.chat_client import ChatClient
from services.relevance_judge.embeddings import load_embedder
from services.relevance_judge.judge import MAX_CONCURRENT_PAIRS, build_messages, fit_passage
from services.relevance_judge.prompt_template import get_template, make_fence, render_prompt
from shared.registry import CallContext

How = Literal["model", "similarity"]
_BY_GRADE: tuple[Support, ...] = ("not_support", "partial_support", "support")
PASSAGE_CHARS = 6000

Item = TypeVar("Item")
Reply = TypeVar("Reply")


@dataclass(frozen=True)
class Nugget:
    """A fact that an answer should hold, and the passages that it comes from."""

    text: str
    importance: Importance
    passages: tuple[str, ...] = ()


@dataclass(frozen=True)
class AnswerJudge:
    """Judges answers with the language model behind a client, or by similarity."""

    client: ChatClient
    how: How
    llm: str | None = None
    seed: int | None = None

    def create_nuggets(
        self, query: str, passages: Mapping[str, str], run: CallContext, *, most: int = 20
    ) -> list[Nugget]:
        """Facts of the passages, said once each, those nearest to the query first.

        By similarity a fact is a sentence, and the nearer half of those that are kept is called vital.
        """
        found: list[tuple[str, Importance, str]] = []
        if self.how == "model":
            listed = self._map(list(passages), lambda docid: self._list_facts(query, passages[docid], run), run)
            for docid, facts in zip(passages, listed, strict=True):
                found += [(text, importance, docid) for importance, text in facts]
        else:
            for docid, text in passages.items():
                found += [(claims.strip_citations(one), "okay", docid) for one in claims.split_sentences(text)]
        found = [one for one in found if one[0]]
        if not found:
            return []
        embedder = load_embedder()
        near = embedder.embed([text for text, _, _ in found]) @ embedder.embed([query])[0]
        order = [found[place] for place in np.argsort(-near, kind="stable")]
        kept = [order[place] for place in claims.drop_repetitions([text for text, _, _ in order])][:most]
        cover = claims.cover_claims([text for text, _, _ in kept], list(passages.values()))
        return [
            Nugget(
                text,
                importance if self.how == "model" else ("vital" if place < (len(kept) + 1) // 2 else "okay"),
                tuple(name for name, value in zip(passages, row, strict=True) if name == own or value >= claims.FULL),
            )
            for place, ((text, importance, own), row) in enumerate(zip(kept, cover, strict=True))
        ]

    def assign_nuggets(
        self, query: str, answer: str, nuggets: Sequence[Nugget], run: CallContext
    ) -> tuple[list[Support], NuggetScores]:
        """How an answer holds each fact, and its scores; which sentences hold one is compared by similarity."""
        texts = [nugget.text for nugget in nuggets]
        sentences = [claims.strip_citations(one) for one in claims.split_sentences(answer)]
        if self.how == "model":
            supports = self._map(texts, lambda text: self._ask("nugget-assignment", query, answer, text, run), run)
        else:
            supports = [claims.classify_coverage(value) for value in claims.cover_claims(texts, [answer])[:, 0]]
        hits = claims.cover_claims(texts, sentences).max(0) >= claims.PARTIAL if sentences and texts else []
        return supports, score_answer([one.importance for one in nuggets], supports, [bool(hit) for hit in hits])

    def support_sentences(
        self, query: str, answer: str, passages: Mapping[str, str], run: CallContext
    ) -> list[SentenceSupport]:
        """How each sentence of an answer is supported by the passages that it cites, and by any.

        A model is asked about what is cited and about the passage nearest to the sentence.
        """
        raw = claims.split_sentences(answer)
        plain = [claims.strip_citations(one) for one in raw]
        pairs = [(one, text) for one, text in zip(raw, plain, strict=True) if text]
        if not pairs or not passages:
            return [SentenceSupport(text=text) for _, text in pairs]
        cover = claims.cover_claims([text for _, text in pairs], list(passages.values()))
        claims_with_cover = list(zip(pairs, cover, strict=True))
        return self._map(claims_with_cover, lambda one: self._support(query, *one[0], one[1], passages, run), run)

    def _support(
        self, query: str, raw: str, text: str, cover: NDArray[np.float64], passages: Mapping[str, str], run: CallContext
    ) -> SentenceSupport:
        names, cited = list(passages), claims.read_citations(raw)
        nearest = names[int(cover.argmax())]
        supports: dict[str, Support] = {}
        for name in dict.fromkeys([*(one for one in cited if one in passages), nearest]):
            if self.how == "model":
                supports[name] = self._ask("claim-support", query, passages[name], text, run)
            else:
                supports[name] = claims.classify_coverage(float(cover[names.index(name)]))
        best = max(supports, key=lambda name: SUPPORT_VALUES[supports[name]])
        known: dict[str, Support] = {name: supports.get(name, "not_support") for name in cited}
        is_held = supports[best] != "not_support"
        return SentenceSupport(text=text, cited=known, best=supports[best], best_passage=best if is_held else None)

    def _list_facts(self, query: str, passage: str, run: CallContext) -> list[tuple[Importance, str]]:
        answer = self._chat("nugget-creation", query, passage, "", run)
        facts: list[tuple[Importance, str]] = []
        for line in answer.splitlines():
            word, colon, text = line.strip().lstrip("-*•0123456789.) ").partition(":")
            if colon and text.strip() and word.strip().casefold() in {"vital", "okay"}:
                facts.append(("vital" if word.strip().casefold() == "vital" else "okay", text.strip()))
        return facts

    def _ask(self, template: str, query: str, passage: str, claim: str, run: CallContext) -> Support:
        """The model's word; an answer that is none of the words supports nothing."""
        grade = get_template(template).read_grade(self._chat(template, query, passage, claim, run)).grade
        return _BY_GRADE[grade] if grade is not None else "not_support"

    def _chat(self, name: str, query: str, passage: str, claim: str, run: CallContext) -> str:
        template = get_template(name)

        def ask(text: str) -> str:
            mark = make_fence(query, text + claim, self.seed)
            shown = render_prompt(template, query, text, mark=mark, criterion=claim)
            most = template.max_tokens
            return self.client.chat(build_messages(shown), run, model=self.llm, max_tokens=most, seed=self.seed).text

        return fit_passage(passage, PASSAGE_CHARS, ask)[0]

    def _map(self, items: Sequence[Item], rule: Callable[[Item], Reply], run: CallContext) -> list[Reply]:
        if self.how == "similarity":
            return [rule(item) for item in items]
        return map_concurrently(rule, items, run)


def map_concurrently(rule: Callable[[Item], Reply], items: Sequence[Item], run: CallContext) -> list[Reply]:
    """Apply a rule that asks a model to all items, several at a time; after an error nothing more is begun."""
    found: list[Reply] = []
    with ThreadPoolExecutor(MAX_CONCURRENT_PAIRS, thread_name_prefix="judge") as pool:
        try:
            for done, reply in enumerate(pool.map(rule, items), 1):
                found.append(reply)
                run.progress(done / len(items), f"{done} of {len(items)}")
        finally:
            pool.shutdown(cancel_futures=True)
    return found
