"""Lexical runs of the mini-collection are those of the code; words and scores of both rankers are as defined."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.mini_judgements import RANKERS, build_run
from services.relevance_judge.metrics.baselines import bm25, overlap, tokenize
from services.relevance_judge.parsing.trec import read_runs
from services.relevance_judge.storage.mini_collection import load_mini_collection

MINI = load_mini_collection()


@pytest.mark.parametrize("system", sorted(RANKERS))
def test_stored_runs_are_those_of_the_code(system):
    path = MINI.folder / "runs" / f"{system}.trec"
    assert path.read_text() == build_run(MINI, system)
    (tag,) = read_runs(path)
    assert tag == system


def test_words_are_letters_and_digits_in_any_script_without_function_words_and_plural_s():
    assert tokenize("What is the Größe_2 of naïve vaccines, glass or gas?") == [
        "grösse", "2", "naïve", "vaccine", "glass", "gas",
    ]  # fmt: skip


def test_bm25_prefers_rare_words_repeated_words_and_short_passages():
    passages = {
        "rare": "zebra the the", "common": "the the the", "twice": "zebra zebra the", "long": "zebra " + "x " * 30,
    }  # fmt: skip
    found = bm25("the zebra", passages)
    assert found["twice"] > found["rare"] > found["long"]
    assert bm25("zebra", passages)["common"] == 0


@given(st.text(max_size=40), st.dictionaries(st.sampled_from("abc"), st.text(max_size=60)))
def test_scores_are_never_negative_and_overlap_is_a_share(query, passages):
    assert all(score >= 0 for score in bm25(query, passages).values())
    assert all(0 <= score <= 1 for score in overlap(query, passages).values())
