"""Judges grade pairs with evidence, count what is invalid and keep no request; and `POST /v1/judge`."""

import math
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from fovea.errors import FoveaError, InvalidOption, NotFound, NotReady
from services.relevance_judge.chat_client import ChatClient
from services.relevance_judge.judge import Judge
from services.relevance_judge.judges.ensemble import Ensemble
from services.relevance_judge.judges.log_odds import LogOdds, expected_grade, yes_no_odds
from services.relevance_judge.judges.prompted_grade import PromptedGrade
from services.relevance_judge.judges.query_likelihood import QueryLikelihood
from services.relevance_judge.metrics.calibration import fit
from services.relevance_judge.prompt_template import get_template
from services.relevance_judge.routes import router
from services.relevance_judge.schemas import JudgeIn, JudgeOut
from services.relevance_judge.tests.conftest import judge_one, serve_judges
from services.relevance_judge.tests.fake_endpoint import FakeModel, answered_by
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.openapi_fuzz import fuzz
from tests.harness.serving import is_loaded, serve_in_thread

PAIR = {"query": "what causes tides", "passage": "The moon causes tides."}
DIGITS = {"0": -4.0, "1": -2.0, "2": -0.5, "3": -1.5}


def _one(judge: Judge, **options: Any) -> JudgeOut:
    return judge_one(judge, **{"pairs": [PAIR], **options})


def test_a_grade_comes_with_its_evidence_and_an_invalid_answer_is_tried_again_warm():
    found = _one(PromptedGrade(FakeModel(lambda _: "3").client()))
    (verdict,) = found.results
    assert (verdict.grade, verdict.valid, verdict.answer, verdict.llm, verdict.tokens) == (3, True, "3", "fake", 7)
    assert verdict.template == f"direct@{get_template('direct').digest}"
    assert (found.invalid, found.imputed, verdict.attempts) == (0, 0, 1)
    model = FakeModel(lambda _: "I can't say, maybe 2 or so")
    found = _one(PromptedGrade(model.client()), retries=2, seed=5)
    (verdict,) = found.results
    assert (verdict.grade, verdict.valid, verdict.reason, verdict.attempts) == (None, False, "absent", 3)
    assert (found.invalid, [body["temperature"] for body in model.asked]) == (1, [0.0, 0.7, 0.7])
    assert [body["seed"] for body in model.asked] == [5, 6, 7]
    model = FakeModel(lambda body: "1" if body["temperature"] else "none")
    (verdict,) = _one(PromptedGrade(model.client())).results
    assert (verdict.grade, verdict.attempts, verdict.tokens) == (1, 2, 14)


def test_criteria_are_asked_apart_and_averaged_half_up_and_turns_carry_the_models_words_on():
    grades = iter(["3", "2", "2", "3"])
    model = FakeModel(lambda _: f"##final score: {next(grades)}")
    (verdict,) = _one(PromptedGrade(model.client()), template="criteria", rationale=True).results
    assert verdict.grade == 3
    assert len(model.asked) == len(verdict.rationale or ()) == 4
    model = FakeModel(lambda body: "3" if "precise" in str(body) else "?")
    (verdict,) = _one(PromptedGrade(model.client()), template="criteria").results
    assert (verdict.grade, verdict.valid) == (None, False)
    model = FakeModel(lambda body: "Because." if len(body["messages"]) < 4 else "##final score: 2")
    (verdict,) = _one(PromptedGrade(model.client()), template="reason-then-grade", rationale=True).results
    assert verdict.grade == 2
    assert verdict.rationale == ["Because.", "##final score: 2"]
    assert [m["role"] for m in model.asked[1]["messages"]] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize("refusal", [
    {"message": "too long", "code": "context_length_exceeded"},
    {"message": "This model's maximum context length is 400 tokens. You requested 1016 tokens.", "code": 400},
    {"message": "The prompt (length 1000) is longer than the maximum model length of 400.", "code": 400},
])  # fmt: skip
def test_an_overlong_passage_is_cut_until_it_fits_and_flagged(refusal):
    model = FakeModel(window=400)
    model.too_long = refusal
    (verdict,) = _one(PromptedGrade(model.client()), pairs=[{"query": "q", "passage": "word " * 1000}]).results
    assert (verdict.grade, verdict.flags) == (2, ["cut"])


def test_digits_give_an_expected_grade_and_a_missing_one_the_smallest_probability():
    (verdict,) = _one(LogOdds(FakeModel(first=DIGITS).client())).results
    weights = {int(k): math.exp(v) for k, v in DIGITS.items()}
    mean = sum(k * w for k, w in weights.items()) / sum(weights.values())
    assert (verdict.expected, verdict.grade) == (pytest.approx(mean), round(mean))
    assert (sum(verdict.probabilities or ()), verdict.flags) == (pytest.approx(1), ["uncalibrated"])
    mean, shares, cut = expected_grade({"2": -0.1, "x": -9.0}, range(4))
    assert cut
    assert shares[0] == shares[1] == shares[3] < 0.001
    assert mean == pytest.approx(2, abs=0.01)
    spaced = {f" {grade}": value for grade, value in DIGITS.items()}
    assert expected_grade(spaced | {"2": -30.0}, range(4)) == expected_grade(DIGITS, range(4))


def test_the_odds_of_yes_take_every_spelling_together_and_have_no_grade_without_a_calibration():
    spelt = (f"{space}{word}" for space in ("", " ") for word in ("Yes", "yes", "No", "no"))
    full = {word: -1.0 if "y" in word.lower() else -3.0 for word in (*spelt, "YES", "NO")}
    assert yes_no_odds(full) == (pytest.approx(2.0), False)
    signal, cut = yes_no_odds({"Yes": -0.1, "No": -3.0})
    assert cut
    assert signal > 0
    judge = LogOdds(FakeModel(first={"Yes": -0.1, "No": -3.0}).client())
    (verdict,) = _one(judge, template="yes-no").results
    assert (verdict.grade, verdict.valid, verdict.reason) == (None, False, "uncalibrated")
    cuts = fit([-2.0, -1.0, 0.1, 0.3], [0, 1, 2, 3], ["a", "a", "b", "b"])
    found = _one(judge, template="yes-no", calibration=cuts)
    assert (found.results[0].grade, found.results[0].calibration) == (3, cuts.digest)
    assert len(found.notes) == 2  # few pairs, few queries


def test_an_ensemble_shows_its_votes_and_leaves_invalid_ones_out():
    def say(body: dict[str, Any]) -> str:
        return "nonsense" if "bins" in body["messages"][0]["content"] else "3"

    found = _one(Ensemble(FakeModel(say).client()), retries=0)
    (verdict,) = found.results
    assert (verdict.grade, verdict.votes, found.invalid, verdict.template.count("@")) == (3, [3, 3, None], 0, 3)
    for members, reason in ((("direct", "words"), "no_valid_vote"), (("word-overlap",), "uncalibrated")):
        (verdict,) = _one(Ensemble(FakeModel(lambda _: "?").client()), retries=0, members=members).results
        assert (verdict.grade, verdict.valid, verdict.reason) == (None, False, reason)


@pytest.mark.parametrize(("status", "body", "kind"), [
    (401, {"error": {"message": "no key"}}, NotReady), (500, {}, NotReady),
    (404, {"error": {"message": "no model"}}, NotFound), (422, {"detail": "bad"}, InvalidOption),
    (200, {"choices": []}, FoveaError), (200, [], FoveaError),
])  # fmt: skip
def test_what_the_endpoint_refuses_is_an_error_of_ours(status, body, kind):
    transport = httpx2.MockTransport(lambda _: httpx2.Response(status, json=body))
    with pytest.raises(kind):
        _one(PromptedGrade(ChatClient("http://x.test", transport=transport)))


@pytest.mark.parametrize("broken", [
    {}, {"pairs": []}, {"query": "q"}, {"query": "q", "passages": [{"doc": {}}]}, {"query": "q", "passages": "abc"},
    {"pairs": [PAIR], "query": "q"}, {"pairs": [{"query": "", "passage": "p"}]}, {"pairs": [PAIR] * 257},
    {"pairs": [PAIR], "impute": 4}, {"pairs": [PAIR], "what": 1},
])  # fmt: skip
def test_a_broken_request_is_refused(broken):
    with pytest.raises(ValidationError):
        JudgeIn.model_validate(broken)


@pytest.mark.parametrize(("url", "is_remote"), [("http://127.0.0.1:8080", False), ("https://models.example/x/", True)])
def test_a_model_on_this_machine_is_asked_without_a_proxy(url, is_remote):
    client = ChatClient(url, key="k")
    assert client._client.trust_env is is_remote
    assert client._client.headers["authorization"] == "Bearer k"
    client.close()


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    kinds = {kind.card.name: answered_by(FakeModel(), kind) for kind in (PromptedGrade, LogOdds)}  # it always says 2
    with serve_judges(tmp_path_factory.mktemp("fovea"), kinds) as made:
        yield made


@pytest.mark.parametrize(("body", "status", "field"), [
    ({"pairs": [{"query": "q"}]}, 422, "pairs"),
    ({"query": "q", "passages": ["p"], "template": "nope"}, 404, "template"),
    ({"query": "q", "passages": ["p"], "template": "yes-no"}, 422, "template"),
    ({"query": "q", "passages": ["p"], "model": "log-odds"}, 422, "llm"),
    ({"query": "q", "passages": ["p"], "model": "oracle"}, 404, "model"),
])  # fmt: skip
def test_a_bad_request_is_a_problem_that_names_its_field(client, body, status, field):
    answer = client.post("/v1/judge", json={"model": "prompted-grade", **body})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.json()["field"] == field


def test_no_request_that_the_document_allows_is_a_server_error(tmp_path):
    settings = Settings(_env_file=None, shutdown_grace_s=1, data_dir=tmp_path)
    judges = {"query-likelihood": answered_by(FakeModel(lambda _: "A"), QueryLikelihood)}
    app = build("relevance-judge", routers=[router], servables=judges, settings=settings)
    with serve_in_thread(app, is_loaded) as url:
        fuzz(app.openapi(), url, 8, "/v1/judge")
