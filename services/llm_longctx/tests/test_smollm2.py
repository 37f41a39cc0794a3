"""The embedded default, for real: it loads, answers, and what it streams is what it says."""

import time

import openai
import pytest

from services.llm_longctx.models.smollm2 import SmolLM2
from services.llm_longctx.tests.conftest import Server, smollm2_app
from shared.lm.bundled_models import SMOLLM2
from shared.registry import LoadContext


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with Server(smollm2_app(tmp_path_factory.mktemp("data"))) as server:
        yield server


@pytest.fixture(scope="module")
def smol(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(smol, text="How many days has a week?", **more):
    messages = [{"role": "user", "content": text}]
    return smol.chat.completions.create(
        **{"model": SMOLLM2, "messages": messages, "max_tokens": 24, "temperature": 0} | more
    )


def test_it_knows_how_many_days_a_week_has_and_stops_by_itself(smol):
    (choice,) = ask(smol).choices
    assert "7" in choice.message.content
    assert choice.finish_reason == "stop"
    assert "<|im_end|>" not in choice.message.content


def test_scoring_prefers_sense_to_nonsense(smol):
    texts = ["The capital of France is Paris.", "The capital of France is spoon."]
    scored = smol.completions.create(model=SMOLLM2, prompt=texts, max_tokens=0, echo=True, logprobs=0)
    sense, nonsense = (sum(c.logprobs.token_logprobs[1:]) for c in scored.choices)
    assert sense > nonsense + 3


@pytest.mark.timed("what is converted once must not be converted again: that shows in the time of a second start only")
def test_loading_again_takes_less_than_five_seconds(running):
    place = LoadContext(cache=running.app.state.settings.cache_dir, threads=1, options={"llm_weights": "fp32"})
    begun = time.process_time()
    SmolLM2.load(place).close()
    assert time.process_time() - begun < 5
