"""Evaluation: suites, and the grid of needles."""

import io
import json
import time
from contextlib import closing

import httpx2
import numpy as np
import pytest
from PIL import Image

from fovea.cli.option_groups import expand_options
from fovea.errors import BadInput, Cancelled, DeadlineExceeded, InvalidOption, Malformed, NotReady, TooLarge
from fovea_lab import cli
from fovea_lab.heatmap import draw_heatmap
from fovea_lab.interpretability.endpoint import LongctxEndpoint
from fovea_lab.interpretability.needle_grid import NeedleGrid
from fovea_lab.method_quality import FidelityRequest, NeedleRequest, run_fidelity, run_needle
from fovea_lab.text_corpus import load_library_prose
from services.interpretability.experiments.retrieval_heads.spec import RetrievalHeadsSpec
from services.interpretability.tests.conftest import ask
from services.llm_longctx.serving.local_models import make_local_model
from shared.lm.niah_prompts import build_haystack
from shared.registry import CallContext, LoadContext
from tests.harness.waiting import wait_until

fidelity, needle = expand_options(cli.fidelity), expand_options(cli.needle)


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("cache")
    with closing(make_local_model(folder).load(LoadContext(cache=place, weights=place, threads=1))) as loaded:
        yield loaded


def test_fidelity_of_prose_and_copies(model):
    spec = FidelityRequest(lengths=[40, 80], steps=12, longctx={"method": "recycled", "budget": 4, "stride": 50})
    report = run_fidelity(model.adapter, spec, CallContext())
    cells = [(task, length, 12) for task in ("text", "copy") for length in (40, 80)]
    assert [(r.task, r.length, r.tokens) for r in report.rows] == cells
    assert all(r.kl > 0 and 0 <= r.agreement <= 1 and r.perplexity > 1 for r in report.rows)
    shortest = run_fidelity(model.adapter, FidelityRequest(lengths=[16], steps=5), CallContext())
    assert [(r.task, r.length, r.tokens) for r in shortest.rows] == [("text", 16, 5), ("copy", 16, 2)]
    dense = run_fidelity(model.adapter, FidelityRequest(lengths=[40], steps=5), CallContext())
    assert all(r.agreement == 1 and r.kl < 1e-6 for r in dense.rows)
    assert [r.perplexity for r in dense.rows] == pytest.approx([r.perplexity_dense for r in dense.rows])


@pytest.mark.parametrize(("run", "spec", "word"), [
    (run_needle, NeedleRequest(lengths=[5000]), "exceed the context"),
    (run_fidelity, FidelityRequest(lengths=[100], steps=20, text="short"), "The text has"),
    (run_fidelity, FidelityRequest(lengths=[20], longctx={"method": "none"}, steps=3), "no attention"),
])  # fmt: skip
def test_what_can_not_be_measured_is_refused(model, run, spec, word):
    with pytest.raises(InvalidOption, match=word):
        run(model.adapter, spec, CallContext())


def test_the_verbs_print_draw_and_save(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    needle(model=str(folder), lengths="150", depths="0,100", steps=3, out=tmp_path / "needle.json")
    out, err = capsys.readouterr()
    assert (out.splitlines()[0], "recall, mean" in err) == ("depth \\ tokens\t150", True)
    fidelity(model=str(folder), longctx='{"method": "power", "block": 16}', lengths="48", steps=4)
    assert "top-1" in capsys.readouterr().out
    fidelity(model=str(folder), method="power", knob=["block=16"], lengths="150", steps=2, json_lines=True)
    assert json.loads(capsys.readouterr().out)["rows"][0]["length"] == 150
    assert json.loads((tmp_path / "needle.json").read_text())["lengths"] == [150]
    assert (tmp_path / "needle.png").read_bytes().startswith(b"\x89PNG")
    for verb, options, told in (
        (fidelity, {"longctx": "{"}, "no JSON"), (fidelity, {"lengths": "a"}, "comma-separated"),
        (needle, {"lengths": "3"}, "lengths"), (needle, {"method": "power", "knob": ["block"]}, "has no value"),
        (needle, {"method": "power", "knob": ["block=none"], "lengths": "150"}, "power can't take block"),
        (needle, {"out": tmp_path / "needle.png"}, "lies next"),
    ):  # fmt: skip
        with pytest.raises((Malformed, InvalidOption), match=told):
            verb(model=str(folder), **options)
    picture = Image.open(io.BytesIO(draw_heatmap([[0.0, 0.5], [1.0, 0.25]], ["0 %", "100 %"], ["512", "1024"])))
    low, high = picture.getpixel((66, 34)), picture.getpixel((66, 82))
    assert (picture.format, low[0] > low[1], high[1] > high[0]) == ("PNG", True, True)


def test_long_english_text_comes_with_python_in_the_order_of_a_seed():
    text = load_library_prose(20_000, seed=1)
    assert 20_000 <= len(text) < 200_000
    assert text == load_library_prose(20_000, seed=1) != load_library_prose(20_000, seed=2)
    assert text.count(" the ") > 100
    spec = FidelityRequest(lengths=[40], corpus="generated", seed=3)
    assert (spec.long_text(30), FidelityRequest(text="my own").long_text(10**6)) == (build_haystack(240, 3), "my own")


def test_text_before_a_needle_is_read_once_and_kept_prefixes_yield_to_comparisons(model, monkeypatch, folder, tmp_path):
    monkeypatch.setattr("shared.lm.niah_prompts.QUESTION_TOKENS", 0)
    requests, add = [], model.adapter.scheduler.add_request
    monkeypatch.setattr(model.adapter.scheduler, "add_request", lambda one: (requests.append(one), add(one)))
    run_needle(model.adapter, NeedleRequest(lengths=[180], depths=[90, 100], steps=3, text="Go. " * 60), CallContext())
    assert [one.stats.cached_tokens for one in requests] == [0, 64]
    room = model.adapter.engine.dense_bytes(400)
    monkeypatch.setattr("services.llm_longctx.serving.decoder_model.choose_room", lambda *_: (room, 4))
    small = make_local_model(folder).load(LoadContext(cache=tmp_path, weights=tmp_path, threads=1))
    prefixes = small.adapter.engine.prefix_cache
    run_needle(small.adapter, NeedleRequest(lengths=[150, 180], depths=[0, 50, 100], steps=3), CallContext())
    assert len(prefixes) > 0
    run_fidelity(small.adapter, FidelityRequest(lengths=[180], steps=5), CallContext())
    assert len(prefixes) == 0, "the comparison needed their memory"
    small.close()


def test_a_grid_is_told_step_by_step_and_frees_its_pages_when_it_is_cancelled(model):
    told: list[tuple[float, str | None]] = []
    spec = NeedleRequest(lengths=[150, 170], depths=[0, 100], steps=3)
    run_needle(model.adapter, spec, CallContext(report=lambda *news: told.append(news)))
    shares = [share for share, _ in told]
    assert (shares, told[-1]) == (sorted(shares), (1.0, "170 tokens, depth 0 %"))
    told.clear()
    run = CallContext(report=lambda *news: [told.append(news), run.cancel()])
    with pytest.raises(Cancelled):
        run_needle(model.adapter, spec, run)
    assert max(share for share, _ in told) < 1
    scheduler, engine = model.adapter.scheduler, model.adapter.engine
    wait_until(lambda: not scheduler.in_flight and not scheduler.backend.background_tasks, 10, "the end of its work")
    engine.prefix_cache.clear()
    assert engine.pool.held == 0


def test_a_comparison_is_given_up_before_its_turn_or_at_its_deadline(model, monkeypatch):
    monkeypatch.setattr(model.adapter.scheduler, "run_when_idle", lambda work: work.close())
    with pytest.raises(Cancelled, match="given up"):
        run_fidelity(model.adapter, FidelityRequest(lengths=[40], steps=5), CallContext())
    monkeypatch.setattr(model.adapter.scheduler, "run_when_idle", lambda _work: None)
    soon = CallContext(deadline=time.monotonic() + 0.05)
    with pytest.raises(DeadlineExceeded):
        run_fidelity(model.adapter, FidelityRequest(lengths=[40], steps=5), soon)


def test_hidden_heads_change_a_grid_and_lengths_and_depths_that_no_prompt_has_are_refused(context):
    plain = ask(NeedleGrid, context)
    hidden = ask(NeedleGrid, context, heads=[[l, h] for l in range(3) for h in range(4)])
    assert np.array(plain.grid("needle").values).shape == (2, 2)
    assert hidden.scalars["heads_hidden"].value == 12
    with pytest.raises(TooLarge, check=lambda e: e.field == "lengths"):
        ask(NeedleGrid, context, lengths=[3000])
    for options, told in (
        ({"lengths": [250, 700]}, "of 250 tokens has no room"),
        ({"lengths": [700], "corpus": "Too short. " * 9}, "The haystack has"),
    ):
        with pytest.raises(InvalidOption, match=told):
            ask(NeedleGrid, context, **options)
    with pytest.raises(InvalidOption, match="hides none"):
        ask(NeedleGrid, context, heads=[[0, 1]], longctx={"method": "snapkv"})
    for read in (lambda **options: ask(NeedleGrid, context, **options), RetrievalHeadsSpec):
        for depth in (-1, 101):
            with pytest.raises(ValueError, match="depths"):
                read(depths=[depth])


def endpoint_that(answer):
    return LongctxEndpoint("http://model.test", "key", transport=httpx2.MockTransport(answer))


def test_method_is_asked_over_the_openai_protocol(context):
    asked = []

    def answer(request):
        asked.append(json.loads(request.content))
        return httpx2.Response(200, json={"choices": [{"message": {"content": "rent a blue rowing boat"}}]})

    study = NeedleGrid.load(context)
    study.endpoint = endpoint_that(answer)
    method = {"method": "duo", "plan": {"schema": "head-plan/1", "roles": [[1]]}}
    spec = study.In.model_validate({"lm": "tiny", "lengths": [600], "depths": [0], "longctx": method})
    (report,) = study.predict([spec], CallContext())
    assert 0.3 < report.scalars["recall"].value < 0.7
    assert (asked[0]["longctx"], asked[0]["temperature"]) == (method, 0)
    assert asked[0]["model"] == "tiny-induction", "the model that the map is said to be of"


def gone(_request):
    raise httpx2.ConnectError("refused")


@pytest.mark.parametrize(("answer", "error", "word"), [
    (lambda _: httpx2.Response(400, json={"error": {"message": "no such method"}}), BadInput, "no such method"),
    (lambda _: httpx2.Response(200, json={"nothing": 1}), BadInput, None),
    (lambda _: httpx2.Response(503, text="not yet"), NotReady, None), (gone, NotReady, "No gateway answers"),
])  # fmt: skip
def test_refusals_and_absence_of_the_endpoint_are_passed_on(answer, error, word):
    with pytest.raises(error, match=word):
        endpoint_that(answer).chat("hello", max_tokens=3, longctx={"method": "duo"})
