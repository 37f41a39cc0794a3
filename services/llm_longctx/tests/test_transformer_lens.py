"""Activation patching over HTTP against TransformerLens on SmolLM2, position by position; golden/README.md says how."""

import json
from pathlib import Path

import httpx2
import numpy as np
import pytest

import fovea
from services.llm_longctx.api import steering, sweeps
from services.llm_longctx.tests.conftest import Server, smollm2_app

LENS = json.loads((Path(__file__).parent / "golden/transformer_lens.json").read_text("utf8"))
CLEAN, CORRUPT, LAYERS, HEAD_LAYERS = (LENS[name] for name in ("clean", "corrupt", "layers", "head_layers"))
TOKENS = [" Mary", " John"]
NEAR = {"rtol": 0, "atol": 2e-3}
"""Logit differences are of the size of 10; both sides compute in float32."""


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    app = smollm2_app(tmp_path_factory.mktemp("smol"), steering.router, sweeps.router)
    with Server(app) as server, fovea.Client(server.url) as made:
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


@pytest.mark.parametrize("site", LENS["patch"])
def test_a_sweep_of_positions_and_layers_is_that_of_transformer_lens(client, site):
    found = client.sweep(CORRUPT, TOKENS, source=CLEAN, site=f"hook_{site}", layers=LAYERS)
    np.testing.assert_allclose(found.logit_difference, LENS["patch"][site], **NEAR)
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
