"""Judges that run in this process: similarity of embeddings, word overlap, and the small language model."""

import json
from typing import Any

import numpy as np
import pytest

from loadtests.mini_judgements import measure_judge
from services.llm_longctx.tests.conftest import Server, smollm2_app
from services.relevance_judge import embeddings
from services.relevance_judge.chat_client import ChatClient
from services.relevance_judge.embeddings import cosines, load_embedder, split_windows
from services.relevance_judge.judge import Judge
from services.relevance_judge.judges.prompted_grade import PromptedGrade
from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.judges.similarity import Similarity
from services.relevance_judge.judges.word_overlap import WordOverlap
from services.relevance_judge.parsing.label_formats import parse_signals
from services.relevance_judge.storage.mini_collection import load_mini_collection
from services.relevance_judge.tests.conftest import judge_one
from shared.lm.bundled_models import MINILM, MPNET, SMOLLM2

MINI = load_mini_collection()


@pytest.fixture(autouse=True)
def _small_embedder_alone(monkeypatch):
    """Whatever is packed into this environment: recorded signals are those of the small embedder."""
    monkeypatch.setattr(embeddings, "bundled_embedder", lambda name: name == MINILM)
    monkeypatch.setattr(embeddings, "_RECENT", embeddings._RecentVectors())


def verdicts(judge: Judge, qid: str, **options: Any) -> dict[tuple[str, str], Any]:
    pairs = [pair for pair in MINI.labels if pair[0] == qid]
    shown = [{"query": MINI.topics[q], "passage": MINI.passages[d]} for q, d in pairs]
    return dict(zip(pairs, judge_one(judge, pairs=shown, **options).results, strict=True))


@pytest.mark.parametrize(("judge", "recorded"), [(Similarity, "similarity"), (QueryLikelihood, "query-lift")])
def test_recorded_verdicts_are_what_the_card_says_and_beat_overlap_by_far(judge, recorded):
    rows = parse_signals((MINI.folder / "judgements" / f"{recorded}.jsonl").read_text(), recorded).rows
    found = measure_judge(rows, MINI)
    for metric in (one for one in judge.card.metrics if "synthetic" in one.data):
        assert metric.ours == pytest.approx(found[metric.name], abs=6e-4), metric.name
    assert (found["pair_order"] or 0) > WordOverlap.card.metrics[0].ours + 0.1


def test_the_embedder_itself_gives_the_recorded_signals():
    recorded = parse_signals((MINI.folder / "judgements" / "similarity.jsonl").read_text(), "similarity").signals
    for pair, found in verdicts(Similarity(ChatClient("http://127.0.0.1:9")), "3").items():
        assert found.signal == pytest.approx(recorded[pair], abs=2e-3)
        assert (found.llm, found.reason) == ("all-minilm-l6-v2", "uncalibrated")


class FixedVectors:
    """An embedder of single letters, each a direction in the plane."""

    max_tokens = 8

    def __init__(self, angles: dict[str, float]) -> None:
        self.angles = angles

    def tokenize(self, text: str) -> list[int]:
        return [0] * (2 + len(text.split()))

    def embed(self, texts: list[str]) -> np.ndarray:
        turns = np.radians([self.angles[text] for text in texts])
        return np.stack([np.cos(turns), np.sin(turns)], 1)


def test_two_embedders_judge_together_and_the_larger_counts_twice(monkeypatch):
    both = {MPNET: FixedVectors({"q": 0, "a": 60, "b": 0}), MINILM: FixedVectors({"q": 0, "a": 0, "b": 90})}
    monkeypatch.setattr(embeddings, "bundled_embedder", lambda name: name in both)
    monkeypatch.setattr(embeddings, "load_embedder", both.get)
    assert cosines("q", ["a", "b"]) == pytest.approx([(2 * 0.5 + 1) / 3, 2 / 3])
    assert list(embeddings.judging_embedders()) == [MPNET, MINILM]


def test_a_passage_of_two_topics_is_embedded_once_while_its_vectors_are_among_the_last(monkeypatch):
    read: list[str] = []

    class Counting(FixedVectors):
        def embed(self, texts: list[str]) -> np.ndarray:
            read.extend(texts)
            return super().embed(texts)

    one = Counting({"q": 0, "r": 90, "a": 30, "b": 60, "c": 90})
    monkeypatch.setattr(embeddings, "load_embedder", lambda _name: one)
    monkeypatch.setattr(embeddings, "MAX_RECENT_WINDOWS", 2)
    first, second = cosines("q", ["a", "b", "a"]), cosines("r", ["b"])
    assert first == pytest.approx([np.cos(np.pi / 6), 0.5, np.cos(np.pi / 6)])
    assert second == pytest.approx([np.cos(np.pi / 6)])
    assert sorted(read) == ["a", "b", "q", "r"]
    cosines("q", ["c"])
    cosines("q", ["b", "a"])
    assert (read.count("a"), read.count("b")) == (2, 1)


def test_windows_cover_every_word_a_long_passage_counts_by_its_nearest_and_overlap_is_a_share():
    words = [f"word{number}" for number in range(700)]
    found = split_windows(" ".join(words), load_embedder())
    assert set(" ".join(found).split()) == set(words)
    assert all(len(text.split()) > 1 for text in found)
    found = verdicts(WordOverlap(ChatClient("http://127.0.0.1:9")), "1")
    assert {verdict.llm for verdict in found.values()} == {None}
    assert all(0 <= verdict.signal <= 1 for verdict in found.values())
    assert len(np.unique([verdict.signal for verdict in found.values()])) > 1
    query, answer = "why is the sky blue", "The sky is blue because air scatters short waves of light most."
    filler = "The accounts of the village were read aloud, and nobody objected to any of them. " * 20
    plain, buried = (cosines(query, [text])[0] for text in (filler * 2, f"{filler}{answer} {filler}"))
    assert len(split_windows(filler * 2, load_embedder())) > 2
    assert " ".join(split_windows(answer, load_embedder())) == answer
    assert buried > plain + 0.2


QUERY = "13"
"""Of the half that is meant for testing."""


def recorded(name: str) -> list[dict[str, Any]]:
    path = MINI.folder / "judgements" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text("utf8").splitlines()]


@pytest.fixture(scope="module")
def smol(tmp_path_factory):
    with Server(smollm2_app(tmp_path_factory.mktemp("smol"))) as server:
        endpoint = ChatClient(server.url)
        yield endpoint
        endpoint.close()


ASKED = {"seed": 1, "retries": 0, "llm": SMOLLM2}


@pytest.mark.release
def test_the_model_itself_gives_the_recorded_signals_and_no_grade(smol):
    kept = {(row["qid"], row["docid"]): row for row in recorded("query-lift")}
    for pair, found in verdicts(QueryLikelihood(smol), QUERY, template="query-lift", **ASKED).items():
        assert found.signal == pytest.approx(kept[pair]["signal"], abs=0.05), pair
        assert found.log_likelihood == pytest.approx(kept[pair]["log_likelihood"], abs=0.05), pair
    said = {(row["qid"], row["docid"]): row for row in recorded("prompted-direct")}
    for pair, found in verdicts(PromptedGrade(smol), QUERY, template="direct", **ASKED).items():
        assert (found.grade, found.reason) == (said[pair]["grade"], said[pair]["reason"]), pair
