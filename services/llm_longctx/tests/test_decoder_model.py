"""The Servable: what is chosen to be served, how it loads, and that a batch equals its singles."""

import time
from contextlib import closing

import pytest

from fovea.api.text import ChatRequest
from fovea.errors import FoveaError, InvalidOption, NotFound, UnsupportedMedia
from services.llm_longctx.models.smollm2 import SmolLM2
from services.llm_longctx.serving.chat import ChatProtocol
from services.llm_longctx.serving.local_models import make_local_model, select_models
from services.llm_longctx.tests.conftest import HELLO
from shared.registry import CallContext, LoadContext
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
    with pytest.raises(NotFound, match="no model at gone") as caught:
        make_local_model(tmp_path / "gone.gguf").load(LoadContext(cache=tmp_path))
    assert "FOVEA_LLM_MODEL" in caught.value.hint
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
