"""SmolLM2 as a judge: the model itself, for real, gives the recorded verdicts."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from services.llm_longctx.tests.conftest import Server, smollm2_app
from services.relevance_judge.chat_client import ChatClient
from services.relevance_judge.judge import Judge
from services.relevance_judge.judges.prompted_grade import PromptedGrade
from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.schemas import JudgeIn, JudgeOut
from services.relevance_judge.storage.mini_collection import load_mini_collection
from shared.lm.bundled_models import SMOLLM2
from shared.registry import CallContext

MINI = load_mini_collection()
QUERY = "13"
"""Of the half that is meant for testing."""

EVERY = tuple(docid for qid, docid in MINI.labels if qid == QUERY)


def recorded(name: str) -> list[dict[str, Any]]:
    path = MINI.folder / "judgements" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text("utf8").splitlines()]


@pytest.fixture(scope="module")
def smol(tmp_path_factory):
    with Server(smollm2_app(tmp_path_factory.mktemp("smol"))) as server:
        endpoint = ChatClient(server.url)
        yield endpoint
        endpoint.close()


def _verdicts(judge: Judge, template: str, docids: Sequence[str]) -> dict[tuple[str, str], Any]:
    pairs = [(QUERY, docid) for docid in docids]
    request = JudgeIn.model_validate(
        {
            "pairs": [{"query": MINI.topics[q], "passage": MINI.passages[d]} for q, d in pairs], "template": template,
            "seed": 1, "retries": 0, "llm": SMOLLM2,
        }
    )  # fmt: skip
    (answer,) = judge.predict([request], CallContext())
    assert isinstance(answer, JudgeOut), answer
    return dict(zip(pairs, answer.results, strict=True))


@pytest.mark.parametrize(
    ("read", "graded"),
    [(("m13-2", "m13-6"), ("m13-7",)), pytest.param(EVERY, EVERY, marks=pytest.mark.release)],
    ids=["some", "all"],
)
def test_the_model_itself_gives_the_recorded_signals_and_no_grade(smol, read, graded):
    kept = {(row["qid"], row["docid"]): row for row in recorded("query-lift")}
    for pair, found in _verdicts(QueryLikelihood(smol), "query-lift", read).items():
        assert found.signal == pytest.approx(kept[pair]["signal"], abs=0.05), pair
        assert found.log_likelihood == pytest.approx(kept[pair]["log_likelihood"], abs=0.05), pair
    said = {(row["qid"], row["docid"]): row for row in recorded("prompted-direct")}
    for pair, found in _verdicts(PromptedGrade(smol), "direct", graded).items():
        assert (found.grade, found.reason) == (said[pair]["grade"], said[pair]["reason"]), pair
