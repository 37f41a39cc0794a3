"""Evidence for judges in a real browser: each panel shows what its route answers to the mini-collection."""

from typing import Any

import httpx2
import pytest

from services.gateway.tests.browsing import MARKS, figure
from services.relevance_judge.storage.mini_collection import load_mini_collection

pytestmark = MARKS

MINI = load_mini_collection()
PATIENCE_MS = 240_000


def texts() -> dict[str, str]:
    names = ("topics.tsv", "passages.jsonl", "qrels.txt", "judgements/query-lift.jsonl")
    return {name: (MINI.folder / name).read_text("utf8") for name in names}


def opened(page: Any, element: str) -> None:
    page.goto(f"/console/judge#{'correct' if element == 'corrected' else element}")


def shown(page: Any, element: str, action: str = "Use the mini-collection") -> Any:
    opened(page, element)
    part = page.locator(f"fovea-judge-{element}")
    part.get_by_role("button", name=action).click()
    part.locator("[data-part=result]").wait_for(timeout=PATIENCE_MS)
    return part


def rows(part: Any, name: str) -> list[list[str]]:
    return [row.locator("th,td").all_inner_texts() for row in part.locator(f"[data-part={name}] tr").all()]


def test_a_trust_report_says_whether_the_judge_is_better_and_shows_why(page, judging):
    part, given = shown(page, "trust"), texts()
    body = {"reference": given["qrels.txt"], "judge": given["judgements/query-lift.jsonl"],
            "topics": given["topics.tsv"], "passages": given["passages.jsonl"]}  # fmt: skip
    answer = httpx2.post(f"{judging.url}/v1/judge/trust", json=body, timeout=120).json()
    assert figure(part, "statement") == answer["statement"]
    table = rows(part, "rows")
    assert [row[0] for row in table] == ["judge", *(one["name"] for one in answer["baselines"])]
    assert table[0][1] == f"{answer['judge']['pair_order']:.3f}"
    assert part.locator("[data-part=order-rows] circle").count() == len(table)
    assert f"{answer['judge']['pairs']} pairs of {answer['queries']} queries" in figure(part, "sample")


def test_significance_has_a_row_and_a_sentence_for_each_pair_of_systems(page):
    part = shown(page, "significance")
    pairs = rows(part, "pairs")
    assert len(pairs) == 6  # of four runs
    assert all(float(row[3]) <= float(row[4]) for row in pairs)
    sentences = part.locator("[data-part=statements] li").all_inner_texts()
    assert len(sentences) == 6
    assert all("permutation p" in sentence for sentence in sentences)
    part.get_by_label("Correction").select_option("none")
    part.get_by_role("button", name="Test").click()
    part.locator("[data-part=result]").wait_for(timeout=PATIENCE_MS)
    assert all(row[3] == row[4] for row in rows(part, "pairs"))


def test_scores_are_corrected_by_the_labels_of_some_topics(page):
    part = shown(page, "corrected")
    assert (figure(part, "labelled"), figure(part, "queries")) == ("8", "24")
    systems = rows(part, "systems")
    assert len(systems) == part.locator("[data-part=scores-rows] circle").count() == 4
    corrected = [float(row[3]) for row in systems]
    assert corrected == sorted(corrected, reverse=True)
    assert "prediction-powered over 8 queries" in part.locator("[data-part=statements] li").first.inner_text()


def test_facts_of_passages_are_looked_for_in_an_answer_and_its_citations_checked(page):
    part = shown(page, "nuggets")
    facts, sentences = rows(part, "facts"), rows(part, "sentences")
    assert any(row[3] == "support" for row in facts)
    assert {row[3] for row in facts} <= {"support", "partial support", "not support"}
    assert [row[2] for row in sentences] == ["1", "2"]
    assert "[1] support" in sentences[0][1]
    assert float(figure(part, "citation_precision")) < float(figure(part, "faithfulness"))


@pytest.mark.parametrize("element", ["trust", "significance", "corrected"])
def test_what_is_missing_is_named(page, element):
    opened(page, element)
    part = page.locator(f"fovea-judge-{element}")
    part.locator("[data-part=go]").click()
    part.locator("[data-part=fault]").wait_for()
    assert "is required" in figure(part, "fault-detail")
