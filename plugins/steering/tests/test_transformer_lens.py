"""On SmolLM2: patching against TransformerLens (golden/README.md says how), and the examples of docs/17-steering.md."""

import contextlib
import io
import json
import re
from pathlib import Path

import httpx2
import numpy as np
import pytest

import fovea
from fovea.api.text import GenerationOptions
from services.llm_longctx.tests.conftest import Server, smollm2_app
from tests.harness.hypothesis_profiles import in_depth

LENS = json.loads((Path(__file__).parent / "golden/transformer_lens.json").read_text("utf8"))
CLEAN, CORRUPT, LAYERS, HEAD_LAYERS = (LENS[name] for name in ("clean", "corrupt", "layers", "head_layers"))
TOKENS = [" Mary", " John"]
NEAR = {"rtol": 0, "atol": 2e-3}  # logit differences are of the size of 10; both sides compute in float32


@pytest.fixture(scope="module")
def smol(tmp_path_factory):
    with Server(smollm2_app(tmp_path_factory.mktemp("smol"))) as server:
        yield server.url


@pytest.fixture(scope="module")
def client(smol):
    with fovea.Client(smol) as made:
        yield made


def capture(client, *captures, prompt=CLEAN):
    body = {"prompt": prompt, "max_tokens": 1, "capture": list(captures)}
    return client.run("complete", body)["choices"][0]["captured"]


def keep(client, site):
    return capture(client, {"type": "activation", "site": site, "positions": "prompt", "keep": True})[0]["id"]


def difference(client, *changes):
    """Logit difference of the two names after the changes, from the log-probabilities of an answer."""
    found = []
    for token in TOKENS:
        body = {"prompt": CORRUPT + token, "max_tokens": 0, "echo": True, "logprobs": 0, "interventions": list(changes)}
        scored = httpx2.post(f"{client.url}/v1/completions", json=body, timeout=120).json()["choices"][0]["logprobs"]
        found.append(scored["token_logprobs"][-1])
    return found[0] - found[1]


@pytest.mark.parametrize("site", in_depth(LENS["patch"], ["resid_pre", "attn_out"]))
def test_a_sweep_of_positions_and_layers_is_that_of_transformer_lens(client, site):
    at = [8, 10, 13]  # up to the eighth both prompts are the same
    found = client.sweep(CORRUPT, TOKENS, source=CLEAN, site=f"hook_{site}", layers=LAYERS, positions=at)
    np.testing.assert_allclose(found.logit_difference, np.array(LENS["patch"][site])[:, at], **NEAR)
    assert found.prompt.logit_difference == pytest.approx(LENS["plain"], abs=2e-3)
    assert found.source.logit_difference == pytest.approx(LENS["source"], abs=2e-3)


@pytest.mark.parametrize("source", [CLEAN, None])
def test_a_sweep_of_heads_is_that_of_transformer_lens(client, source):
    found = client.sweep(CORRUPT, TOKENS, source=source, site="z", by="head", layers=HEAD_LAYERS, positions=[-1])
    np.testing.assert_allclose(found.logit_difference, LENS["z" if source else "z_zero"], **NEAR)


def test_mean_ablations_and_an_attention_row_are_those_of_transformer_lens(client):
    for layer, row in zip(HEAD_LAYERS, LENS["z_mean"], strict=True):
        mean = {"type": "set", "site": f"z.{layer}", "from": keep(client, f"z.{layer}"), "mean": True}
        for head in (1, 3):
            assert difference(client, mean | {"heads": [head], "positions": [13]}) == pytest.approx(row[head], abs=2e-3)
    mean = {"type": "set", "site": "mlp_out.12", "from": keep(client, "mlp_out.12"), "mean": True}
    assert difference(client, mean | {"positions": list(range(14))}) == pytest.approx(LENS["mlp_mean"], abs=2e-3)
    looks = {"type": "attend", "layer": 23, "heads": [3], "keys": [1], "positions": [13]}
    assert difference(client, looks) == pytest.approx(LENS["attend"], abs=2e-3)


def test_patterns_and_the_lens_are_those_of_transformer_lens(client):
    rows, lens = capture(
        client,
        {"type": "attention", "layers": HEAD_LAYERS, "positions": [-1]},
        {"type": "logit_lens", "layers": LAYERS, "top": 3, "positions": [-1]},
    )
    np.testing.assert_allclose(rows["values"][0], LENS["pattern"], rtol=0, atol=2e-4)
    found = [[(one["id"], one["logprob"]) for one in layer] for layer in lens["lens"][0]]
    assert [[i for i, _ in layer] for layer in found] == [[i for i, _ in layer] for layer in LENS["lens"]]
    values = [[[x for _, x in layer] for layer in rows] for rows in (found, LENS["lens"])]
    np.testing.assert_allclose(*values, **NEAR)


PAGE = (Path(__file__).parents[3] / "docs/17-steering.md").read_text("utf8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


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


@pytest.mark.release
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
