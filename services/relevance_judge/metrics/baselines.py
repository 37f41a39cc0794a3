"""Lexical baselines: word overlap and BM25, which a judge has to beat to be worth its cost."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

Scores = dict[str, float]

_FUNCTION_WORDS = """
a an and are as at be between by do does during for from has have how i in is it its much of on or should that the
there this to was what when where which who why with you
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""English words that say nothing about the subject: they are left out of queries and passages."""
# Thai, Lao, Burmese, Khmer, Chinese, Japanese, Korean; and signs of words that `\w` leaves out, as in Hindi.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
_SIGNS = r"\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
_RUN, _WORD = re.compile(f"[{_UNSPACED}]+"), re.compile(rf"(?:[^\W_]+|[{_UNSPACED}{_SIGNS}]+)+")


def tokenize(text: str) -> list[str]:
    """Lower-case words, less function words and the s of plurals; pairs of characters where words have no spaces."""
    spaced = _RUN.sub(
        lambda run: f" {' '.join(map(''.join, pairwise(run[0]))) or run[0]} ",
        unicodedata.normalize("NFKC", text).casefold(),
    )
    return [_singular(word) for word in _WORD.findall(spaced) if word not in FUNCTION_WORDS]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def overlap(query: str, passages: Mapping[str, str]) -> Scores:
    """Share of the query's distinct words that each passage holds, 0…1; 0 for a query without words."""
    query_words = set(tokenize(query))
    return {name: len(query_words & set(tokenize(text))) / max(len(query_words), 1) for name, text in passages.items()}


class LexicalIndex:
    """Words of a set of passages, counted once, for BM25 of many queries."""

    def __init__(self, passages: Mapping[str, str]) -> None:
        self._counts = {name: Counter(tokenize(text)) for name, text in passages.items()}
        self._lengths = {name: count.total() for name, count in self._counts.items()}
        self._mean = sum(self._lengths.values()) / max(len(self._lengths), 1) or 1.0
        self._holders: dict[str, list[str]] = {}
        for name, count in self._counts.items():
            for word in count:
                self._holders.setdefault(word, []).append(name)

    def bm25(self, query: str, *, k1: float = 0.9, b: float = 0.4) -> Scores:
        """BM25 (Robertson and Zaragoza 2009) of each passage, with document frequencies from the passages."""
        scores = dict.fromkeys(self._counts, 0.0)
        for word, times in sorted(Counter(tokenize(query)).items()):
            holders = self._holders.get(word, ())
            idf = _idf(len(holders), len(self._counts))
            for name in holders:
                count, length = self._counts[name][word], self._lengths[name]
                scores[name] += times * idf * count * (k1 + 1) / (count + k1 * (1 - b + b * length / self._mean))
        return scores


def bm25(query: str, passages: Mapping[str, str], *, k1: float = 0.9, b: float = 0.4) -> Scores:
    """BM25 of each passage, see `LexicalIndex.bm25`."""
    return LexicalIndex(passages).bm25(query, k1=k1, b=b)


def _idf(documents: int, total: int) -> float:
    return math.log(1 + (total - documents + 0.5) / (documents + 0.5))
