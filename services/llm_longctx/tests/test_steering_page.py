"""The examples of docs/17-steering.md on the real SmolLM2: a published patching result, and steering into good text."""

import contextlib
import io
import json
import re
from pathlib import Path

import httpx2
import pytest

from fovea.api.text import GenerationOptions
from services.llm_longctx.api import steering, sweeps
from services.llm_longctx.tests.conftest import Server, smollm2_app

PAGE = (Path(__file__).parents[3] / "docs/17-steering.md").read_text("utf8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def smol(tmp_path_factory):
    with Server(smollm2_app(tmp_path_factory.mktemp("smol"), steering.router, sweeps.router)) as server:
        yield server.url


def run(url, *marks):
    (code,) = [one for one in blocks("python") if all(mark in one for mark in marks)]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code.replace("http://127.0.0.1:8080", url), "docs/17-steering.md", "exec"), {})  # noqa: S102
    return printed.getvalue()


def test_requests_of_the_page_are_valid():
    found = [json.loads(one) for one in blocks("json")]
    asked = [one for one in found if one.keys() & {"interventions", "capture", "compare"}]
    assert len(asked) == 3
    for one in asked:
        GenerationOptions.model_validate(one)


def test_the_client_of_the_page_repeats_indirect_object_identification(smol):
    *layers, heads, said, _ = run(smol, "client.sweep(").split("\n")
    rows = [tuple(map(float, re.findall(r"-?\d+\.\d\d", line))) for line in layers]
    assert len(rows) == 30
    assert all(name == pytest.approx(1, abs=0.03) and abs(last) < 0.03 for name, last in rows[:19])
    assert all(abs(name) < 0.06 and last > 0.88 for name, last in rows[24:])
    ((share, layer, head), *_) = eval(heads.partition(":")[2])  # noqa: S307
    assert (layer, head) == (23, 3)
    assert share > 0.4
    assert said == " Mary"


def test_the_steered_answer_of_the_page_is_cheerful_and_fluent(smol):
    steered, captured = run(smol, "steering_vectors.create").rsplit("\n[", 1)
    assert "logit_lens" in captured
    vector = httpx2.get(f"{smol}/v1/steering-vectors/cheerful").json()
    perplexity = {one["strength"]: one["perplexity"] for one in vector["side_effects"]}
    assert perplexity[0] < perplexity[vector["strength"]] <= 1.5 * perplexity[0]
    question = {"messages": [{"role": "user", "content": "How was your day?"}], "max_tokens": 40, "temperature": 0}
    answer = httpx2.post(f"{smol}/v1/chat/completions", json=question, timeout=120).json()
    plain, words = answer["choices"][0]["message"]["content"], re.findall(r"\w+", steered.lower())
    cheerful = {"beautiful", "wonderful", "love", "happy", "pleasure", "glad", "excited"}
    assert cheerful & set(words)
    assert not cheerful & set(re.findall(r"\w+", plain.lower()))
    assert len(set(words)) > 0.6 * len(words)
    body = {"prompt": steered, "max_tokens": 0, "echo": True, "logprobs": 0}
    scored = httpx2.post(f"{smol}/v1/completions", json=body, timeout=120).json()["choices"][0]["logprobs"]
    losses = scored["token_logprobs"][1:]
    assert -sum(losses) / len(losses) < 3.0, "the model as it is finds the steered text likely"
