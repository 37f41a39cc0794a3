"""Stores and limits of steering: versions that stay unique, and captures that are bounded before anything runs."""

from datetime import UTC, datetime

import pytest
import torch

from fovea.api.steering import SteeringVector
from fovea.api.text import GenerationOptions
from fovea.errors import InvalidOption, NotFound, QueueFull
from fovea_steering import build_taps, vector_store
from fovea_steering.build_taps import TapBuilder
from fovea_steering.capture_store import CaptureStore
from fovea_steering.capture_writer import INLINE_NUMBERS
from fovea_steering.vector_store import VectorStore
from services.llm_longctx.engine.taps import ActivationCapture, TokenRange
from services.llm_longctx.tests.conftest import tiny_decoder
from shared.lm.taps import trace
from shared.storage import ObjectStore

PROMPT = 10


@pytest.fixture
def vectors(tmp_path):
    return VectorStore(ObjectStore.open(tmp_path.as_uri()))


def add(vectors, name="calm") -> str:
    facts = SteeringVector(
        id=name, name=name, version=0, model="m", weights="w", width=2, created=datetime.now(UTC),
        tokens="last", positive=1, negative=1, layers=[],
    )  # fmt: skip
    return vectors.add(facts, {0: torch.ones(2)}).id


def test_a_version_of_a_deleted_vector_is_never_given_out_again(vectors):
    assert [add(vectors) for _ in range(3)] == ["calm@1", "calm@2", "calm@3"]
    vectors.delete("calm@3")
    assert add(vectors) == "calm@4"
    vectors.delete("calm@4")
    vectors.delete("calm@2")
    assert (add(vectors), vectors.delete("calm"), vectors.list_ids()) == ("calm@5", [1, 5], [])
    with pytest.raises(NotFound):
        vectors.get("calm")
    assert (add(vectors), vectors.get("calm").id) == ("calm@6", "calm@6")


def test_what_is_remembered_of_deleted_vectors_is_one_file_a_name_and_names_are_bounded(vectors, tmp_path, monkeypatch):
    for _ in range(4):
        add(vectors)
        vectors.delete("calm")
    assert [file.name for file in tmp_path.rglob("*.gone")] == ["4.gone"]
    monkeypatch.setattr(vector_store, "MAX_NAMES", 1)
    with pytest.raises(QueueFull, match="names"):
        add(vectors, "other")
    assert add(vectors) == "calm@5"


@pytest.mark.parametrize("site", ["embed", "resid_post.1", "q.0", "k.0", "v.1", "q_rot.1", "k_rot.1", "z.0", "normed"])
def test_a_captured_activation_counts_what_its_site_holds(site):
    decoder = tiny_decoder()
    held = trace(decoder, torch.arange(PROMPT)[None], capture=[site])[site][0, 0].numel()
    assert ActivationCapture(site, TokenRange()).count(3, decoder.config) == held


def build(capture, *, max_tokens=5, n=1, has_files=True):
    options = GenerationOptions(capture=capture, n=n)
    files = CaptureStore(ObjectStore.open("memory://")) if has_files else None
    return TapBuilder(tiny_decoder().config, "", VectorStore(None), files).build(options, PROMPT, max_tokens)


def lens(**more):
    return {"type": "logit_lens", **more}


@pytest.mark.parametrize(("limit", "fits", "too_much"), [
    ("MAX_PROMPT_ROWS", {"capture": [lens(positions="prompt")]}, {"capture": [lens(positions="prompt")] * 2}),
    ("MAX_STEP_ROWS", {"capture": [lens()] * 2, "n": 5}, {"capture": [lens()] * 2, "n": 6}),
    ("MAX_STEP_ROWS", {"capture": [lens(positions=[at]) for at in range(10, 14)]}, {"capture": [lens()] * 11}),
    ("MAX_ROWS", {"capture": [lens(positions="all")], "max_tokens": 1}, {"capture": [lens()], "max_tokens": 12}),
    ("MAX_ROWS", {"capture": [lens()], "n": 5, "max_tokens": 3}, {"capture": [lens()], "n": 6, "max_tokens": 3}),
])  # fmt: skip
def test_rows_of_the_lens_are_bounded_for_prompts_steps_and_whole_answers(monkeypatch, limit, fits, too_much):
    monkeypatch.setattr(build_taps, limit, 20)
    build(**fits)
    with pytest.raises(InvalidOption, match=r"would read \d\d states .* 20", check=lambda e: e.field == "capture"):
        build(**too_much)


def test_without_an_object_store_captures_that_an_answer_can_not_hold_are_refused_at_once():
    wide = [{"type": "activation", "site": "final", "positions": "all"}] * 32
    fits = INLINE_NUMBERS // (32 * 32) - PROMPT + 1
    build(wide, max_tokens=fits, has_files=False)
    build(wide, max_tokens=fits + 1)
    with pytest.raises(InvalidOption, match="need an object store"):
        build(wide, max_tokens=fits + 1, has_files=False)
