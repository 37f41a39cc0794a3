"""The Servable: what is chosen to be served and how it loads; folders give transformers' logits under every method."""

import time
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest
import torch

from fovea.api.text import ChatRequest
from fovea.errors import FoveaError, InvalidOption, NotFound, UnsupportedMedia
from services.llm_longctx.engine import Engine
from services.llm_longctx.methods import method, methods
from services.llm_longctx.models.smollm2 import SmolLM2
from services.llm_longctx.serving.chat import ChatProtocol
from services.llm_longctx.serving.local_models import make_local_model, select_models
from services.llm_longctx.serving.weight_format import load_weights
from services.llm_longctx.tests.conftest import HELLO
from shared.lm.tests.test_decoder import ids, theirs
from shared.registry import CallContext, LoadContext
from tests.harness.hypothesis_profiles import in_depth
from tests.harness.language_model import share_language_model
from tests.harness.streams import events_of


@pytest.fixture
def model(folder, tmp_path):
    with closing(make_local_model(folder).load(LoadContext(cache=tmp_path, threads=1))) as loaded:
        yield loaded


def test_the_setting_serves_the_models_of_the_room_or_a_path_under_its_files_name(tmp_path):
    served = select_models("smollm2")
    assert served["smollm2-135m-instruct"] is SmolLM2
    assert select_models("smollm2-135m-instruct") == select_models("smollm2")
    (served,) = select_models(str(tmp_path / "My Model v1.5-Q4_K.gguf")).items()
    assert served[0] == served[1].card.name == "my-model-v1.5-q4_k"
    assert list(select_models(str(tmp_path / "Llama-3.2-1B"))) == ["llama-3.2-1b"]


def test_a_path_that_leads_nowhere_and_an_unknown_format_are_refused(tmp_path, folder):
    with pytest.raises(NotFound, match="no model at gone", check=lambda e: "FOVEA_LLM_MODEL" in e.hint):
        make_local_model(tmp_path / "gone.gguf").load(LoadContext(cache=tmp_path))
    (tmp_path / "model.bin").touch()
    with pytest.raises(UnsupportedMedia, match=r"model\.bin"):
        make_local_model(tmp_path / "model.bin").load(LoadContext(cache=tmp_path))
    with pytest.raises(InvalidOption, match="float8"):
        make_local_model(folder).load(LoadContext(cache=tmp_path, options={"llm_weights": "float8"}))


def test_bfloat16_is_another_fingerprint(folder, tmp_path, model):
    place = LoadContext(cache=tmp_path, threads=1, options={"llm_weights": "bf16"})
    with closing(make_local_model(folder).load(place)) as narrow:
        assert narrow.adapter.fingerprint != model.adapter.fingerprint
        assert narrow.predict([narrow.example()], CallContext())[0].usage.completion_tokens == 8


def test_a_stream_gathers_into_the_answer_of_predict(model):
    request = ChatRequest(messages=HELLO, max_tokens=9, temperature=0, n=2)
    gathered = ChatProtocol().gather(events_of(model.stream(request, CallContext())))
    assert gathered.choices == model.predict([request], CallContext())[0].choices
    with pytest.raises(ValueError, match="usage"):
        ChatProtocol().gather(events_of(model.stream(request.model_copy(update={"stream": True}), CallContext())))


def test_closing_refuses_what_comes_after(folder, tmp_path):
    closed = make_local_model(folder).load(LoadContext(cache=tmp_path))
    closed.close()
    (answer,) = closed.predict([closed.example()], CallContext())
    assert isinstance(answer, FoveaError)
    assert answer.status == 503


@pytest.mark.timed("what is converted once must not be converted again: that shows in the time of a second start only")
def test_loading_the_bundled_model_again_takes_less_than_five_seconds(tmp_path):
    share_language_model(tmp_path)
    place = LoadContext(cache=tmp_path, threads=1, options={"llm_weights": "fp32"})
    SmolLM2.load(place).close()
    begun = time.process_time()
    SmolLM2.load(place).close()
    assert time.process_time() - begun < 5


PROMPT, ALL = 48, 60
LAYERS, KV_HEADS, WIDTH = 3, 2, 48
GATES = {"weight": [[0.01 * i for i in range(WIDTH)]] * KV_HEADS, "bias": [0.0] * KV_HEADS}
OPEN = {
    "act": {"beta": 1.0}, "dense": {}, "dhsa": {"budget": 256}, "duo": {"sink": 64, "recent": 64},
    "flexprefill": {"block": 8, "min_budget": 64}, "kvzap": {"ratio": 1.0, "surrogates": (GATES,) * LAYERS},
    "power": {"block": 8, "window": 8}, "razor": {"window_min": 64}, "recycled": {"budget": 64, "stride": 4},
}  # fmt: skip
"""Knobs under which a method reads and keeps everything; evictions that are not named here keep it with ratio 1."""

PLAN = {"schema": "head-plan/1", "roles": [[1, 0]] * LAYERS, "heads": [[2, 1]]}


@cache
def official(family: str, root: Path):
    """A saved folder, loaded as it is served, and the official model's logits [T,V]."""
    model, text = theirs(family), ids(1, ALL)
    model.save_pretrained(root / family)
    with torch.no_grad():
        return load_weights(root / family, root / "cache", "auto"), text[0].tolist(), model(text).logits[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("folders")


CASES = [(family, name) for family in ("llama", "qwen2", "qwen3", "gemma3") for name in methods()]


@pytest.mark.parametrize(("family", "name"), in_depth(CASES, [one for one in CASES if {"qwen3", "dense"} & {*one}]))
def test_a_folder_is_served_as_transformers_runs_it(family, name, root):
    weights, text, known = official(family, root)
    assert weights.format == "fp32"
    how = method(name, **OPEN.get(name, {"ratio": 1.0, "budget": None}))
    if (family, name) == ("gemma3", "kvzip"):  # its replay needs layers that hold the whole prompt
        with pytest.raises(InvalidOption, match="window"):
            Engine(weights.model, how)
        return
    sequence = Engine(weights.model, how, PLAN if how.needs_plan else None, page=16).open()
    found = [sequence.prefill(text[:PROMPT]), *(sequence.step(token)[None] for token in text[PROMPT:])]
    torch.testing.assert_close(torch.cat(found), known, atol=2e-4, rtol=1e-4)
