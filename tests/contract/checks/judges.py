"""The contract of judges. Each check takes a class and gives it language models of its own; it raises AssertionError.

A verdict follows from one pair, the template and what the language model says of them: not from other pairs, not from
earlier requests, and never from nothing.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from fovea.errors import Cancelled, FoveaError
from services.relevance_judge.judge import MAX_CONCURRENT_PAIRS, Judge
from services.relevance_judge.prompt_template import get_template, load_templates
from services.relevance_judge.schemas import JudgeOut, Verdict
from services.relevance_judge.tests.fake_endpoint import FakeModel
from shared.registry import CallContext, LoadContext
from tests.contract.checks.kinds import applies_to, asks_model
from tests.contract.checks.loaded import refused_by
from tests.contract.checks.requests import updated
from tests.contract.sameness import differences

QUERY = "what causes the tides of the ocean"
PASSAGES = (
    "The moon causes the tides of the ocean, and the sun helps.",
    "Bread rises because yeast makes gas in the warm dough.",
    "What causes the wind is warm air that rises over land.",
    "Tides turn twice a day; fishermen of the coast know what causes them.",
    "Sand castles fall when the tides come in.",
)
QUERIES = (QUERY, "how does bread rise in an oven", "which castles have nine towers")
SILENT = "it asks no language model, and its class says that it does"
PARSED = {"absent", "truncated", "not_a_number", "not_an_integer", "out_of_range", "ambiguous"}
"""Reasons that are found in an answer: another try may help."""


class Oracle(FakeModel):
    """A language model whose every answer follows from the whole prompt, and from nothing else."""

    def __init__(self, say: Callable[[dict[str, Any]], str] | None = None) -> None:
        super().__init__(say or self._said)
        self.told: list[tuple[str, str]] = []
        self.heard: Callable[[], None] = lambda: None

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.heard()
        return super()._answer(request)

    def _said(self, body: dict[str, Any]) -> str:
        drawn = _drawn(body)
        answer = f"{drawn:016x}\n##final score: {drawn % 4}"
        self.told.append((json.dumps(body["messages"], ensure_ascii=False), answer))
        return answer

    def _chat(self, body: dict[str, Any]) -> httpx2.Response:
        drawn = _drawn(body)
        first = {token: -(drawn >> 4 * place) % 16 / 4 - 0.1 for place, token in enumerate("0123")}
        first |= {"Yes": -(drawn % 7) / 2 - 0.1, "No": -(drawn // 7 % 7) / 2 - 0.1}
        found = super()._chat(body).json()
        top = [{"token": token, "logprob": value} for token, value in first.items()]
        found["choices"][0]["logprobs"] = {"content": [{"token": "0", "logprob": first["0"], "top_logprobs": top}]}
        return httpx2.Response(200, json=found)

    def _tokenize(self, body: dict[str, Any]) -> httpx2.Response:
        text = body.get("prompt") or "\n".join(message["content"] for message in body["messages"])
        return httpx2.Response(200, json={"tokens": [zlib.crc32(word.encode()) for word in text.lower().split()]})


def _drawn(body: dict[str, Any]) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(body["messages"]).encode()).digest()[:7])


@dataclass(frozen=True)
class Bench:
    """A judge's class, opened before language models."""

    kind: type[Judge]

    @contextmanager
    def before(self, model: FakeModel) -> Iterator[Judge]:
        server = model.serve()
        judge = self.kind.load(LoadContext(options={"judge_base_url": f"http://127.0.0.1:{server.server_port}"}))
        try:
            yield judge
        finally:
            judge.close()
            server.shutdown()
            server.server_close()

    def request(self, judge: Judge, pairs: Sequence[tuple[str, str]], **options: Any) -> Any:
        told = [{"query": query, "passage": passage} for query, passage in pairs]
        found = updated(judge.example(), **{"pairs": told, "seed": 1, **options})
        assert found is not None, f"{options} can't be asked"
        return found


def _judged(judge: Judge, request: Any, run: CallContext | None = None) -> JudgeOut:
    (found,) = judge.predict([request], run or CallContext())
    if isinstance(found, FoveaError):
        raise found
    return found


def _pairs() -> list[tuple[str, str]]:
    return [(QUERY, passage) for passage in PASSAGES] + [(query, PASSAGES[0]) for query in QUERIES[1:]]


def check_list_of_pairs_equals_its_singles(bench: Bench) -> None:
    pairs = _pairs()
    with bench.before(Oracle()) as judge:
        alone = [_judged(judge, bench.request(judge, [pair])).results[0] for pair in pairs]
        together = _judged(judge, bench.request(judge, [*pairs[1:], pairs[0]])).results
        for place, (one, verdict) in enumerate(zip([*alone[1:], alone[0]], together, strict=True)):
            apart = differences(one, verdict, tolerance=0)
            assert apart == [], f"pair {place}: {apart[:3]}"


def check_batch_of_requests_equals_its_singles(bench: Bench) -> None:
    """Requests in one batch keep their own pairs, templates and options."""
    pairs = _pairs()
    with bench.before(Oracle()) as judge:
        requests = [
            bench.request(judge, pairs[:3]), bench.request(judge, pairs[3:4], price=2.0),
            bench.request(judge, pairs[5:9], passage_chars=200, seed=2),
        ]  # fmt: skip
        alone = [_judged(judge, request) for request in requests]
        together = judge.predict([*requests[1:], requests[0]], CallContext())
        for one, answer in zip([*alone[1:], alone[0]], together, strict=True):
            assert differences(one, answer, tolerance=0) == []


def check_nothing_is_kept_between_requests(bench: Bench) -> None:
    """Earlier requests, those made at the same time and refused ones change no verdict; nor does a new judge."""
    pairs = _pairs()
    with bench.before(Oracle()) as judge:
        first = bench.request(judge, pairs[:4])
        others = [
            bench.request(judge, pairs[4:6]), bench.request(judge, pairs[:4], seed=9),
            bench.request(judge, pairs[:1], passage_chars=200, retries=0, impute=3, rationale=True, price=1.0),
            bench.request(judge, [(pairs[0][0], pairs[1][1] * 20)]), bench.request(judge, pairs[:2], llm="other"),
        ]  # fmt: skip
        answer = _judged(judge, first)
        known = [_judged(judge, other) for other in others]
        refused_by(lambda: judge.predict([bench.request(judge, pairs[:1], calibration="nobody's")], CallContext()))
        assert differences(answer, _judged(judge, first), tolerance=0) == []
        asked = [(first, answer), *zip(others, known, strict=True)] * 2
        with ThreadPoolExecutor(4) as pool:
            for (_, alone), found in zip(asked, pool.map(lambda one: _judged(judge, one[0]), asked), strict=True):
                assert differences(alone, found, tolerance=0) == []
    with bench.before(Oracle()) as other:
        _judged(other, others[0])
        assert differences(answer, _judged(other, first), tolerance=0) == [], "an earlier request shows"


def _scales(verdict: Verdict) -> list[tuple[int, int]]:
    named = [get_template(name) for name in verdict.template.split(",")]
    return [(one.scale.lowest, one.scale.highest) for one in named]


def check_grade_is_on_the_scale(bench: Bench) -> None:
    """Whatever the model says: a grade of the template's scale, or none and the reason."""
    for text in ("7", "-1", "##final score: 99", "Score: 4", "2.5", "", "nonsense", "3 out of 100", '{"O": 12}', "2"):
        with bench.before(Oracle(lambda _, text=text: text)) as judge:
            found = _judged(judge, bench.request(judge, _pairs()[:2], retries=0))
            _consistent(found)
            imputed = _judged(judge, bench.request(judge, _pairs()[:2], retries=0, impute=1))
            assert imputed.invalid == found.invalid
            for plain, verdict in zip(found.results, imputed.results, strict=True):
                assert (verdict.valid, verdict.grade) == (plain.valid, plain.grade if plain.valid else 1)
                assert plain.valid or "imputed" in verdict.flags
    with bench.before(Oracle()) as judge:
        _consistent(_judged(judge, bench.request(judge, _pairs())))


def _consistent(found: JudgeOut) -> None:
    assert JudgeOut.model_validate(found.model_dump()) == found
    assert found.invalid == sum(not verdict.valid for verdict in found.results)
    for verdict in found.results:
        if not verdict.valid:
            assert verdict.grade is None, "a grade although none is valid"
            assert verdict.reason, "no reason why there is no grade"
            continue
        assert type(verdict.grade) is int
        low, high = min(low for low, _ in _scales(verdict)), max(high for _, high in _scales(verdict))
        assert low <= verdict.grade <= high, f"{verdict.grade} is off the scale {low}…{high}"


def check_grades_follow_what_the_model_says(bench: Bench) -> None:
    """Over pairs of which the model thinks differently, grades differ."""
    with bench.before(Oracle()) as judge:
        results = _judged(judge, bench.request(judge, _pairs())).results
        grades = {verdict.grade for verdict in results if verdict.valid}
        assert len(grades) > 1, f"every grade is {grades}"


def check_evidence_belongs_to_its_pair(bench: Bench) -> None:
    """The answer that a verdict tells was given to a prompt that shows its own query and passage."""
    with bench.before(model := Oracle()) as judge:
        pairs = _pairs()
        results = _judged(judge, bench.request(judge, pairs, rationale=True)).results
        for (query, passage), verdict in zip(pairs, results, strict=True):
            for answer in {verdict.answer, *(verdict.rationale or ())} - {None}:
                prompts = [prompt for prompt, told in model.told if told == answer]
                if not prompts and not model.told:
                    continue  # it reads no answers
                assert any(query in prompt and passage in prompt for prompt in prompts), "evidence of another pair"
            for votes in filter(None, (verdict.votes, verdict.signals)):
                assert len(votes) == len(verdict.template.split(","))


def check_passage_and_query_are_asked_about(bench: Bench) -> None:
    """Both stand in what the language model is shown, and another one of either changes the verdict."""
    for pairs in ([(QUERY, passage) for passage in PASSAGES], [(query, PASSAGES[0]) for query in QUERIES]):
        model = Oracle()
        with bench.before(model) as judge:
            results = _judged(judge, bench.request(judge, pairs)).results
            shown = json.dumps(model.asked, ensure_ascii=False)
            for query, passage in pairs:
                assert not model.asked or (query in shown and passage in shown), "not shown to the model"
        told = {(verdict.grade, verdict.signal, verdict.answer) for verdict in results}
        assert len(told) > 1, "every passage, or every query, has the same verdict"


@applies_to(asks_model)
def check_seed_makes_verdicts_repeatable(bench: Bench) -> None:
    """Under one seed the model is asked the same to the letter; under another one, otherwise."""
    asked = []
    for seed in (1, 1, 2):
        model = Oracle()
        with bench.before(model) as judge:
            _judged(judge, bench.request(judge, _pairs()[:3], seed=seed))
        asked.append(sorted(json.dumps(body, sort_keys=True) for body in model.asked))
    assert asked[0], SILENT
    assert asked[0] == asked[1], "the same seed asks otherwise"
    assert asked[0] != asked[2], "another seed asks the same"


@applies_to(asks_model)
def check_template_is_used(bench: Bench) -> None:
    """A verdict's template is the one that the model was shown, word for word, and a caller's choice counts."""
    for name in (None, *load_templates()):
        model = Oracle()
        with bench.before(model) as judge:
            found = judge.predict([bench.request(judge, _pairs()[:1], template=name)], CallContext())[0]
            if isinstance(found, FoveaError) and name is not None:
                continue  # a template of another kind
            assert isinstance(found, JudgeOut)
            (verdict,) = found.results
            assert model.asked, SILENT
            shown = json.dumps(model.asked, ensure_ascii=False)
            for one in verdict.template.split(","):
                for part in _words(get_template(one)):
                    assert json.dumps(part, ensure_ascii=False)[1:-1] in shown, f"{one} was not used"
            if name is not None and judge.kinds:
                assert verdict.template == f"{name}@{get_template(name).digest}"


def _words(one: Any) -> list[str]:
    """The literal parts of a template that are long enough to know it by."""
    parts = [part for turn in one.turns[:1] for part in re.split(r"\{\w+\}", turn)]
    return [part for part in (one.system, *parts) if len(part) > 20]


@applies_to(asks_model)
def check_failing_endpoint_is_an_error_and_no_label(bench: Bench) -> None:
    """A model that breaks, talks something else or is not there costs the request; nobody gets a grade for it."""
    healthy = Oracle()
    with bench.before(healthy) as judge:
        _judged(judge, bench.request(judge, _pairs()[:3]))
    assert healthy.asked, SILENT
    refusing = _Strange(401, {"error": {"message": "no"}})
    for broken in (_Breaks(), _Strange(200, {"hello": 1}), refusing, _Strange(200, [])):
        with bench.before(broken) as judge:
            _fails(bench, judge)
    judge = bench.kind.load(LoadContext(options={"judge_base_url": "http://127.0.0.1:9"}))
    _fails(bench, judge)
    judge.close()
    with bench.before(_Breaks(only=PASSAGES[1])) as judge:
        _fails(bench, judge)


def _fails(bench: Bench, judge: Judge) -> None:
    (found,) = judge.predict([bench.request(judge, _pairs()[:3])], CallContext())
    assert isinstance(found, FoveaError), "a label although the language model failed"
    assert found.detail
    assert found.status >= 400


class _Breaks(Oracle):
    """A model that breaks, always or where one text is shown."""

    def __init__(self, only: str = "") -> None:
        super().__init__()
        self._only = only

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        if self._only in json.dumps(json.loads(request.content), ensure_ascii=False):
            return httpx2.Response(500, json={"error": {"message": "broken"}})
        return super()._answer(request)


class _Strange(Oracle):
    """A server that says the same to everything."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__()
        self._status, self._body = status, body

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(self._status, json=self._body)


def check_cancelled_request_stops_asking(bench: Bench) -> None:
    model, run = Oracle(), CallContext()
    with bench.before(model) as judge:
        run.cancel()
        refused = refused_by(lambda: judge.predict([bench.request(judge, _pairs())], run))
        assert isinstance(refused, Cancelled)
        assert model.asked == [], "asks for a run that was cancelled"
        if not bench.kind.asks_model:
            return
        pairs = [(f"{QUERY} {number}", PASSAGES[0]) for number in range(4 * MAX_CONCURRENT_PAIRS)]
        late = CallContext()
        model.heard = late.cancel
        refused = refused_by(lambda: judge.predict([bench.request(judge, pairs)], late))
        assert isinstance(refused, Cancelled)
        assert len(model.asked) < len(pairs), "goes on asking after it was cancelled"


@applies_to(asks_model)
def check_options_count(bench: Bench) -> None:
    """The named model is asked, long passages are cut on request, tries and prices are reported."""
    with bench.before(model := Oracle()) as judge:
        pairs = _pairs()[:1]
        plain = _judged(judge, bench.request(judge, pairs)).results[0]
        assert model.asked, SILENT
        model.asked.clear()
        _judged(judge, bench.request(judge, pairs, llm="other"))
        assert {body.get("model") for body in model.asked} == {"other"}
        model.asked.clear()
        long = [(QUERY, "word " * 100 + "tail")]
        assert "cut" in _judged(judge, bench.request(judge, long, passage_chars=200)).results[0].flags
        assert "tail" not in json.dumps(model.asked)
        priced = _judged(judge, bench.request(judge, pairs, price=1e6)).results[0]
        assert plain.cost is None
        assert priced.cost == pytest.approx(priced.tokens)
        assert priced.tokens > 0
    for retries in (0, 2):
        with bench.before(Oracle(lambda _: "nonsense")) as judge:
            verdict = _judged(judge, bench.request(judge, pairs, retries=retries)).results[0]
            assert verdict.reason not in PARSED or verdict.attempts == retries + 1


JUDGE_CHECKS = tuple(check for name, check in list(globals().items()) if name.startswith("check_"))
"""All of them, in the order in which they stand here."""
