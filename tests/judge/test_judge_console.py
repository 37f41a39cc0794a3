"""The judge's console, also over evidence."""

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from services.gateway.tests.browsing import MARKS, check_page, figure, hold
from services.relevance_judge.parsing.trec import format_qrels, parse_qrels
from services.relevance_judge.storage.mini_collection import load_mini_collection
from tests.harness.hypothesis_profiles import in_depth
from tests.harness.waiting import wait_until

pytestmark = MARKS

MINI = load_mini_collection()


@pytest.fixture
def judge(page):
    page.goto("/console/judge")
    return page


TABS = {"pair": "Label", "batch": "Label", "agreement": "Agreement", "rankings": "Rankings", "board": "Leaderboard"}


def _within(page: Any, element: str) -> Any:
    page.get_by_role("tab", name=TABS[element]).click()
    return page.locator(f"fovea-judge-{element}")


def test_one_pair_is_graded_with_what_the_model_said_and_a_refusal_is_told_in_words(judge, complaints):
    part = _within(judge, "pair")
    part.get_by_role("button", name="Use an example").click()
    expect(part.locator("#pair-passage")).to_have_value(re.compile(".{40}"))
    part.get_by_role("button", name="Judge", exact=True).click()
    part.locator("[data-part=result]").wait_for()
    assert figure(part, "grade") in {"0", "1", "2", "3"}
    assert "Most words are there." in figure(part, "rationale")
    assert "direct@" in part.locator("[data-part=facts]").inner_text()
    part.get_by_label("Judge", exact=True).select_option("query-likelihood")
    part.get_by_role("button", name="Judge", exact=True).click()
    part.get_by_text("No grade: uncalibrated").wait_for()
    part.get_by_label("Judge", exact=True).select_option("prompted-grade")
    part.get_by_label("Template").select_option("yes-no")
    part.get_by_role("button", name="Judge", exact=True).click()
    part.locator("[data-part=fault]").wait_for()
    assert "is for yes-no" in figure(part, "fault-detail")
    assert all("422" in complaint for complaint in complaints)
    complaints.clear()


def test_a_batch_runs_as_a_job_is_kept_and_compared(judge):
    part = _within(judge, "batch")
    part.get_by_role("button", name="Use the mini-collection").click()
    part.get_by_text("From the mini-collection: 24 lines.").wait_for()
    part.get_by_role("button", name="Start").click()
    part.locator("[data-part=result]").wait_for(timeout=30_000)
    assert int(figure(part, "graded")) == int(figure(part, "pairs")) > 48
    assert "grade 0" in (part.locator("[data-part=histogram]").get_attribute("aria-label") or "")
    with judge.expect_download() as waiting:
        part.get_by_role("button", name="qrels").click()
    assert len(parse_qrels(Path(waiting.value.path()).read_text())) == int(figure(part, "graded"))
    agreement = _within(judge, "agreement")
    agreement.get_by_role("button", name="Use the mini-collection").click()
    agreement.locator("[data-part=result]").wait_for()
    judge.get_by_role("tab", name="Label").click()
    part.get_by_role("button", name="Compare with labels").click()
    agreement.get_by_text("From the batch").first.wait_for()
    agreement.locator("[data-part=result]").wait_for()


def test_the_grid_holds_every_pair_and_disagreements_come_widest_first_with_their_texts(judge, tmp_path):
    labels = {pair: grade for pair, grade in MINI.labels.items() if int(pair[0]) < 3}
    for name, given in (("reference", labels), ("judge", {**labels, ("1", "m01-4"): 3, ("2", "m02-8"): 2})):
        (tmp_path / name).write_text(format_qrels(given))
    part = _within(judge, "agreement")
    part.get_by_label("Reference labels").set_input_files(tmp_path / "reference")
    part.get_by_label("The judge’s labels").set_input_files(tmp_path / "judge")
    part.get_by_label("Topics").set_input_files(MINI.folder / "topics.tsv")
    part.get_by_label("Passages").set_input_files(MINI.folder / "passages.jsonl")
    part.get_by_role("button", name="Compare").click()
    part.locator("[data-part=result]").wait_for()
    cells = [[int(figure(part, f"cell-{row}-{column}")) for column in range(4)] for row in range(4)]
    assert cells == [[3, 0, 0, 1], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 1, 3]]
    differ = part.locator(".difference").all_inner_texts()
    assert [text.split()[:3] for text in differ] == [["0", "→", "3"], ["3", "→", "2"]]
    assert "why is the sky blue" in differ[0]
    assert "Blue Sky is the name of a day care centre" in differ[0]


def test_a_file_is_chosen_once_for_all_steps(judge, tmp_path):
    (tmp_path / "people.qrels").write_text(format_qrels(MINI.labels))
    part = _within(judge, "agreement")
    part.get_by_label("Reference labels").set_input_files(tmp_path / "people.qrels")
    part.get_by_label("The judge’s labels").set_input_files(tmp_path / "people.qrels")
    trust = _within(judge, "rankings")
    trust.get_by_text("Uses people.qrels.").first.wait_for()
    trust.get_by_label("Runs").set_input_files(next(MINI.folder.glob("runs/*")))
    trust.get_by_role("button", name="Rank", exact=True).click()
    trust.locator("[data-part=result]").wait_for()
    assert figure(trust, "kappa") == "1.0000"
    (tmp_path / "old.qrels").write_text("Müller 0 a 1", "cp1252")
    part = _within(judge, "agreement")
    part.get_by_label("Reference labels").set_input_files(tmp_path / "old.qrels")
    part.get_by_role("button", name="Compare", exact=True).click()
    part.locator("[data-part=fault]").wait_for()
    assert "old.qrels is not text in UTF-8." in figure(part, "fault-detail")


def test_a_collection_is_uploaded_once_serves_all_steps_and_is_deleted(judge, tmp_path, see):
    (tmp_path / "people.qrels").write_text(format_qrels(MINI.labels))
    part = judge.locator("fovea-collections")
    part.get_by_text("New collection").click()
    part.get_by_label("Name").fill("Autumn")
    files = {
        "Topics": MINI.folder / "topics.tsv", "Passages": MINI.folder / "passages.jsonl",
        "Labels by people": tmp_path / "people.qrels", "Labels by a judge": tmp_path / "people.qrels",
        "Runs": next(MINI.folder.glob("runs/*")),
    }  # fmt: skip
    for label, file in files.items():
        part.get_by_label(label).set_input_files(file)
    part.get_by_role("button", name="Save").click()
    see(part.locator("[data-part=about]")).to_contain_text("24 topics")
    judge.reload()  # it is on the server, and stays chosen
    see(part.get_by_label("Collection", exact=True).locator("option:checked")).to_contain_text("Autumn")
    for element, action, words in (
        ("agreement", "Compare", "Almost perfect agreement: kappa 1.00"),
        ("rankings", "Rank", "Both put bm25 first; tau-b"),
    ):
        step = _within(judge, element)
        see(step.get_by_text("From Autumn.").first).to_be_visible()
        step.get_by_role("button", name=action, exact=True).click()
        see(step.locator("[data-part=statement]")).to_contain_text(words)
    judge.get_by_role("tab", name="Nuggets").click()
    nuggets = judge.locator("fovea-judge-nuggets")
    nuggets.get_by_label("Topic of the collection").select_option(index=1)
    see(nuggets.get_by_label("Query")).not_to_have_value("")
    see(nuggets.get_by_label("Passages")).not_to_have_value("")
    check_page(judge)
    part.get_by_role("button", name="Delete").dblclick()  # asks once
    part.get_by_label("Collection", exact=True).select_option("mini")
    part.get_by_label("Collection", exact=True).select_option(index=2)
    part.get_by_role("button", name="Delete", exact=True).click()
    part.get_by_role("button", name="Delete for good").click()
    see(part.get_by_label("Collection", exact=True).locator("option")).to_have_count(2)
    see(_within(judge, "agreement").get_by_text("From Autumn.")).to_have_count(0)


def test_of_collections_none_is_shown_until_one_is_chosen_the_last_counts_and_steps_keep_theirs(page, tmp_path, see):
    held = hold(page, "**/v1/judge/collection")
    with page.expect_response("**/v1/files?purpose=collection"):
        page.goto("/console/judge")
    page.wait_for_timeout(200)
    judge = page
    chosen, about = judge.get_by_label("Collection", exact=True), judge.locator("fovea-collections [data-part=about]")
    see(chosen).to_have_value("")
    chosen.select_option("mini")
    chosen.select_option("")
    wait_until(lambda: judge.wait_for_timeout(20) or held, 10, "the request")
    held.pop().continue_()
    judge.wait_for_timeout(500)
    see(chosen).to_have_value("")
    see(about).to_have_text("Each step asks for its own files.")
    chosen.select_option("mini")
    step = _within(judge, "agreement")
    step.get_by_role("button", name="Compare").click()
    wait_until(lambda: judge.wait_for_timeout(20) or held, 10, "the request")
    held.pop().continue_()
    see(step.locator("[data-part=statement]")).to_contain_text("agreement: kappa")
    see(step.get_by_role("alert")).to_be_hidden()
    (tmp_path / "other.run").write_text(next(MINI.folder.glob("runs/*")).read_text())
    batch = _within(judge, "batch")
    note = batch.locator("[data-text-note=runs]")
    see(note).to_have_text("From the mini-collection. ")
    _within(judge, "rankings").get_by_label("Runs").set_input_files(tmp_path / "other.run")
    _within(judge, "batch")
    see(note).to_have_text("From the mini-collection. ")
    with judge.expect_request("**/v1/judge/batches") as sent:
        batch.get_by_role("button", name="Start").click()
    assert sent.value.post_data_json["runs"].count("\n") > (tmp_path / "other.run").read_text().count("\n")


def test_a_step_without_its_plugin_says_how_to_install_it_in_place_of_its_form(judge, see, complaints):
    problem = {"title": "Not found", "detail": "It is not installed.", "hint": "Try: pip install fovea-evaluation"}
    judge.route("**/v1/judge/leaderboard", lambda route: route.fulfill(status=404, json=problem))
    panel = judge.get_by_role("tabpanel")
    for tab in ("Rankings", "Significance", "Correct", "Nuggets", "Leaderboard"):
        judge.get_by_role("tab", name=tab).click()
        see(panel).to_contain_text("comes with the plug-in evaluation")
        see(panel).to_contain_text("pip install fovea-evaluation")
        see(panel.locator("form, table").locator("visible=true")).to_have_count(0)
    complaints.clear()


def test_systems_are_plotted_and_listed_and_the_leaderboard_shows_kappa_beside_tau(judge):
    part = _within(judge, "rankings")
    part.get_by_role("button", name="Use the mini-collection").click()
    part.locator("[data-part=result]").wait_for()
    names = part.locator("[data-part=systems] th").all_inner_texts()
    assert {"bm25", "overlap"} <= set(names)
    assert part.locator("[data-part=scatter-dots] circle").count() == len(names)
    assert figure(part, "kappa") != "–"
    part = _within(judge, "board")
    part.locator("tbody tr").first.wait_for()
    rows = part.locator("tbody[data-part=rows] tr").all_inner_texts()
    assert any(row.startswith("overlap") for row in rows)
    assert all("…" in row for row in rows)
    assert "agrees best with people: kappa" in figure(part, "statement")
    assert part.locator("[data-part=kappa-tau-dots] circle").count() <= len(rows)


PATIENCE_MS = 240_000


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


def test_a_trust_report_says_whether_the_judge_is_better_and_shows_why(page, monkeypatch):
    place = "services.relevance_judge.routes.trust._embedding_baseline"  # seconds of a processor
    monkeypatch.setattr(place, lambda pairs, *_: {pair: 1 / len(pair[1]) for pair in pairs})
    with page.expect_response("**/v1/judge/trust", timeout=PATIENCE_MS) as told:
        part = shown(page, "trust")
    files = {
        "reference": "qrels.txt", "judge": "judgements/query-lift.jsonl", "topics": "topics.tsv",
        "passages": "passages.jsonl",
    }  # fmt: skip
    body = {name: (MINI.folder / file).read_text("utf8") for name, file in files.items()}
    assert told.value.request.post_data_json.items() >= body.items()
    answer = told.value.json()
    assert figure(part, "statement") == answer["statement"]
    table = rows(part, "rows")
    assert [row[0] for row in table] == ["judge", *(one["name"] for one in answer["baselines"])]
    assert table[0][1] == f"{answer['judge']['pair_order']:.3f}"
    assert part.locator("[data-part=order-rows] circle").count() == len(table)
    assert f"{answer['judge']['pairs']} pairs of {answer['queries']} queries" in figure(part, "sample")


def test_what_is_missing_is_named_and_significance_has_a_row_and_a_sentence_for_each_pair_of_systems(page):
    for element in ("trust", "corrected", "significance"):
        opened(page, element)
        part = page.locator(f"fovea-judge-{element}")
        part.locator("[data-part=go]").click()
        part.locator("[data-part=fault]").wait_for()
        assert "is required" in figure(part, "fault-detail")
    part = shown(page, "significance")
    assert part.locator("[data-part=result] > *").first.get_attribute("data-part") == "statement"
    assert "of 6 pairs of systems differ" in figure(part, "statement")
    pairs = rows(part, "pairs")
    assert len(pairs) == 6  # of four runs
    assert all(float(row[3]) <= float(row[4]) for row in pairs)
    labels = part.locator("[data-part=differences-rows] text").all_text_contents()
    assert len({label for label in labels if len(label) <= 18}) == 6
    sentences = part.locator("[data-part=statements] li").all_inner_texts()
    assert len(sentences) == 6
    assert all("permutation p" in sentence for sentence in sentences)
    part.get_by_label("Correction").select_option("none")
    part.get_by_role("button", name="Test").click()
    part.locator("[data-part=result]").wait_for(timeout=PATIENCE_MS)
    assert all(row[3] == row[4] for row in rows(part, "pairs"))


def test_scores_are_corrected_by_the_labels_of_some_topics(page):
    part = shown(page, "corrected")
    assert part.locator("[data-part=result] > *").first.get_attribute("data-part") == "statement"
    assert "is best after correction" in figure(part, "statement")
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


@pytest.mark.parametrize("element", in_depth(["trust", "agreement", "corrected"], ["agreement"]))
def test_a_stored_run_opens_in_its_step_again(page, element):
    page.add_init_script("addEventListener('fovea-run-stored', ({ detail }) => (window.stored = detail.id))")
    told = figure(shown(page, element), "statement")
    wait_until(lambda: page.evaluate("window.stored"))
    page.goto(f"/console/judge?run={page.evaluate('window.stored')}")
    part = page.locator(f"fovea-judge-{element}")
    part.locator("[data-part=result]").wait_for(timeout=PATIENCE_MS)
    assert figure(part, "statement") == told
