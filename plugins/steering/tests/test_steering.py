"""Interventions, captures and steering vectors over HTTP, with the openai client as anybody would use it."""

import io
import json
import shlex
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from typer.testing import CliRunner

from fovea.cli.main import app
from fovea.errors import FoveaError
from fovea_steering.commands import steer
from fovea_steering.make_vectors import PROSE, STRENGTHS
from services.llm_longctx.tests.conftest import HELLO, MODEL, go_on, say, text_of
from shared.lm.taps import Add, trace

WIDTH, LAYERS, HEADS = 32, 2, 4
PROMPT = len("<user>Hello, who are you?\n<assistant>")
UP = {"vector": [3.0] + [0.0] * 30 + [-3.0], "site": "resid_post.0", "scale": 2.0}


def refusal(client, **fields) -> dict:
    with pytest.raises(openai.BadRequestError) as caught:
        say(client, extra_body=fields)
    return caught.value.body


def test_a_stream_brings_captures_token_by_token(client):
    capture = [
        {"type": "activation", "site": "resid_post.1", "positions": "decode"},
        {"type": "attention", "layers": [1], "heads": [0, 2], "positions": [-1, PROMPT]},
        {"type": "logit_lens", "top": 3, "positions": [-1]},
    ]
    whole = say(client, extra_body={"capture": capture}, max_tokens=5, logprobs=True)
    streamed: dict[int, list[dict]] = {}
    for chunk in say(client, extra_body={"capture": capture}, max_tokens=5, stream=True):
        for one in getattr(chunk.choices[0], "captured", None) or []:
            streamed.setdefault(one["capture"], []).append(one)
    activation, attention, lens = whole.choices[0].captured
    assert activation["positions"] == [PROMPT, PROMPT + 1, PROMPT + 2, PROMPT + 3]
    said = [one.token for one in whole.choices[0].logprobs.content]
    assert (activation["tokens"], np.array(activation["values"]).shape) == (said[:4], (4, WIDTH))
    assert [one["positions"] for one in streamed[0]] == [[at] for at in activation["positions"]]
    assert [value for one in streamed[0] for value in one["values"]] == activation["values"]
    assert (attention["layers"], attention["heads"], attention["positions"]) == ([1], [0, 2], [PROMPT - 1, PROMPT])
    for at, rows in zip(attention["positions"], attention["values"], strict=True):
        np.testing.assert_allclose(np.array(rows).sum(-1), np.ones((1, 2)), atol=1e-5)
        assert np.array(rows).shape == (1, 2, at + 1)
    assert (lens["layers"], lens["lens"][0][-1][0]["token"]) == ([0, 1], said[0])


def test_weights_of_attend_belong_to_the_keys_beside_them(client):
    attend = {"type": "attend", "layer": 0, "heads": [0, 1, 2, 3], "positions": [-1]}
    capture = [{"type": "activation", "site": "z.0", "positions": [-1]}]

    def mix(keys: list[int], weights: list[float]) -> list:
        changes = [attend | {"keys": keys, "weights": weights}]
        answer = say(client, extra_body={"interventions": changes, "capture": capture}, max_tokens=1)
        return answer.choices[0].captured[0]["values"]

    assert mix([9, 2], [0.9, 0.1]) == mix([2, 9], [0.1, 0.9]) != mix([2, 9], [0.9, 0.1])
    assert mix([-1, 2], [0.9, 0.1]) == mix([2, PROMPT - 1], [0.1, 0.9])


def test_a_large_capture_is_a_file_and_its_positions_are_told(client, server):
    capture = [{"type": "attention", "positions": "all"}, {"type": "activation", "site": "embed", "positions": "all"}]
    prompt = "x" * 150
    attention, embed = go_on(client, prompt, extra_body={"capture": capture}, max_tokens=4).choices[0].captured
    assert (attention["values"], attention["url"]) == (None, embed["url"])
    arrays = np.load(io.BytesIO(server.http.get(attention["url"]).content))
    assert (arrays["0.values"].shape, arrays["1.values"].shape) == ((153, LAYERS, HEADS, 153), (153, WIDTH))
    np.testing.assert_allclose(arrays["0.values"].sum(-1), 1, atol=1e-4)
    assert arrays["0.positions"].tolist() == attention["positions"] == list(range(153))
    assert server.http.delete(attention["url"]).json()["deleted"] is True
    assert server.http.get(attention["url"]).status_code == 404


ONES = [1.0] * WIDTH
REFUSED = {
    "interventions": [
        ({"vector": ONES, "site": "resid_post.9"}, "layers are 0…1"),
        ({"vector": ONES, "site": "residual"}, "There is no site"),
        ({"vector": [1.0] * 5, "site": "resid_post.1"}, "has 5 numbers"), ({"vector": ONES}, "needs a site"),
        ({"vector": ONES, "site": "embed", "scale": 1e9}, "less than or equal to 1000"),
        ({"vector": [1e6] * WIDTH, "site": "embed"}, "at most 10000"),
        ({"vector": [1e300] * WIDTH, "site": "embed", "scale": 0}, "at most 10000"),
        ({"vector": ONES, "site": "embed", "heads": [0]}, "no heads"),
        ({"type": "scale", "site": "z.0", "factor": 1e9}, "less than or equal to 100"),
        ({"type": "scale", "site": "pattern.0", "factor": 0}, "attend or uniform"),
        ({"type": "scale", "site": "z.0", "factor": 0, "heads": [7]}, "no head 7"),
        ({"type": "uniform", "layer": 5}, "layers are 0…1"),
        ({"type": "attend", "layer": 0, "heads": [0], "keys": [0], "weights": [1, 2]}, "2 weights"),
        ({"type": "attend", "layer": 0, "heads": [0], "keys": [-500]}, "positions are"),
        ({"type": "rotate"}, "rotate"), ({"vector": ONES, "site": "embed", "sclae": 1}, "sclae"),
    ],
    "capture": [
        ({"type": "activation", "site": "scores.0"}, "attention"),
        ({"type": "activation", "site": "z.0", "positions": [5000]}, "positions are"),
        ({"type": "activation", "site": "resid_post.01"}, "layers are 0…1"), ({"type": "gradient"}, "gradient"),
        ({"type": "activation", "site": "resid_post.١"}, "layers are 0…1"),
        ({"type": "attention", "heads": [4]}, "no head 4"), ({"type": "logit_lens", "layers": [2]}, "layers are 0…1"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("field", "case"), [(field, case) for field, cases in REFUSED.items() for case in cases])
def test_what_can_not_be_done_is_a_clear_400(client, field, case):
    value, what = case
    body = refusal(client, **{field: [value]})
    assert (what in body["message"], body["type"]) == (True, "invalid_request_error"), body
    assert body["param"].startswith(field)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400"])
def test_numbers_that_are_none_are_refused(server, number):
    body = json.dumps({"messages": HELLO, "interventions": [UP]}).replace("-3.0", number)
    answer = server.http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "interventions.0.add.vector.31")
    assert "finite number" in answer.json()["error"]["message"]


def test_captures_over_the_limit_are_refused_before_anything_runs(client, monkeypatch):
    monkeypatch.setattr("fovea_steering.build_taps.MAX_CAPTURED", 1000)
    body = refusal(client, capture=[{"type": "activation", "site": "final", "positions": "all"}])
    assert "a request may have 1,000" in body["message"]
    # Few short rows and a long one: as long as that in the file.
    rows = [{"type": "attention", "layers": [0], "heads": [1, 1], "positions": [*range(10), 188]}]
    assert "1,039 numbers" in refusal(client, capture=rows, max_tokens=155)["message"]
    one = {"capture": [{"type": "activation", "site": "final", "positions": [-1]}]}
    assert len(go_on(client, ["a"] * 31, extra_body=one, max_tokens=1).choices) == 31
    with pytest.raises(openai.BadRequestError, match="1,024 numbers"):
        go_on(client, ["a"] * 32, extra_body=one, max_tokens=1)


def test_interventions_that_blow_up_are_refused_and_the_model_serves_on(client):
    blow = [{"type": "scale", "site": f"resid_post.{layer}", "factor": 100} for layer in (0, 1)] * 16
    assert "not finite" in refusal(client, interventions=blow)["message"]
    assert text_of(client)


def vector_of(server, **more):
    body = {"name": "calm", "model": MODEL, "positive": ["calm", "quiet"], "negative": ["loud", "noise!"]}
    return server.http.post("/v1/steering-vectors", json=body | more)


def _mean_stream(decoder, ids):
    return trace(decoder, torch.tensor([ids]), capture=["resid_post.1"])["resid_post.1"][0, 1:].mean(0)


def test_a_steering_vector_is_made_listed_used_and_deleted(client, server, decoder):
    made = vector_of(server, layers=[1], tokens="mean").json()
    assert (made["id"], made["version"], made["width"], made["positive"]) == ("calm@1", 1, WIDTH, 2)
    assert vector_of(server, layers=[0, 1]).json()["id"] == "calm@2"
    found = server.http.get("/v1/steering-vectors/calm@1?values=true").json()["layers"]
    tokenize = server.app.state.host.servable(MODEL).adapter.tokenize
    positive, negative = (
        torch.stack([_mean_stream(decoder, tokenize(text, "prompt")) for text in texts]).mean(0)
        for texts in (["calm", "quiet"], ["loud", "noise!"])
    )
    np.testing.assert_allclose(found[0]["values"], positive - negative, atol=1e-5)
    assert [one["layer"] for one in found] == [1]
    assert [one["id"] for one in server.http.get("/v1/steering-vectors").json()["data"]] == ["calm@2", "calm@1"]
    numbers = found[0]["values"]
    assert np.isclose(np.linalg.norm(numbers), found[0]["norm"], rtol=1e-5)
    by_name = text_of(client, extra_body={"interventions": [{"vector": "calm@1", "scale": 9.0}]})
    by_number = {"vector": numbers, "site": "resid_post.1", "scale": 9.0}
    assert by_name == text_of(client, extra_body={"interventions": [by_number]}) != text_of(client)
    scaled = np.array(numbers) * made["strength"] * found[0]["activation_norm"] / found[0]["norm"]
    ours = {"vector": scaled.tolist(), "site": "resid_post.1"}
    default, minus = {"vector": "calm@1"}, {"vector": "calm@1", "strength": -made["strength"]}
    edits = default, minus | {"strength": made["strength"]}, ours, minus
    answers = [say(client, extra_body={"interventions": [edit]}, logprobs=True).choices[0] for edit in edits]
    scores = [[token.logprob for token in answer.logprobs.content] for answer in answers]
    assert scores[0] == scores[1] == pytest.approx(scores[2], abs=1e-4)
    assert scores[3] != scores[0]
    assert text_of(client, extra_body={"interventions": [{"vector": "calm", "scale": 9.0, "site": "resid_post.0"}]})
    elsewhere = refusal(client, interventions=[{"vector": "calm@1", "site": "resid_post.0"}])
    assert "has no vector for" in elsewhere["message"]
    assert server.http.delete("/v1/steering-vectors/calm").json()["versions"] == [1, 2]
    with pytest.raises(openai.NotFoundError, match="no steering vector"):
        say(client, extra_body={"interventions": [{"vector": "calm@1"}]})


@pytest.mark.parametrize(("more", "status"), [
    ({"name": "A B"}, 400), ({"layers": [7]}, 400), ({"positive": []}, 400), ({"positive": [""]}, 400),
    ({"negative": ["x" * 5000]}, 400), ({"tokens": "first"}, 400), ({"model": "nobody"}, 404),
    ({"unknown": 1}, 400),
])  # fmt: skip
def test_bad_vectors_are_refused(server, more, status):
    answer = vector_of(server, **more)
    assert answer.status_code == status, answer.text
    assert "error" in answer.json()


def check_scopes(server, url: str, body: dict) -> None:
    """A key without the scope is refused an intervention and a capture; with it, the audit log has them."""

    def ask(scopes: str, **more):
        return server.http.post(url, json=body | more, headers={"x-fovea-scopes": scopes})

    for fields in ({"interventions": [UP]}, {"capture": [{"type": "logit_lens"}]}):
        answer = ask("infer,jobs", **fields)
        assert (answer.status_code, "interventions" in answer.json()["error"]["message"]) == (403, True)
    plain, steered = ask("infer,jobs"), ask("infer,interventions", interventions=[UP])
    assert (plain.status_code, "x-fovea-audit" in plain.headers) == (200, False)
    assert json.loads(steered.headers["x-fovea-audit"])["interventions"] == "add"


def test_a_key_without_the_scope_is_refused_and_audit_is_told(server):
    body = {"messages": HELLO, "max_tokens": 2}
    check_scopes(server, "/v1/chat/completions", body)
    assert server.http.get("/v1/steering-vectors", headers={"x-fovea-scopes": "infer"}).status_code == 403
    wrong = server.http.post("/v1/chat/completions", json=body | {"capture": [{"type": "gradient"}]})
    assert wrong.json()["error"]["param"].startswith("capture")


def test_the_commands_of_the_documentation_run(server, monkeypatch):
    monkeypatch.setenv("FOVEA_URL", server.url)
    text = (Path(__file__).parents[3] / "docs/17-steering.md").read_text("utf8")
    commands = [line for line in text.splitlines() if line.startswith("fovea steer ")]
    assert len(commands) == 5
    for command in commands:
        ran = CliRunner().invoke(app, shlex.split(command)[1:])
        assert ran.exit_code == 0, (command, ran.output, ran.exception)


def test_a_vector_comes_with_a_layer_a_strength_and_its_side_effects(client, server, decoder):
    made = vector_of(server, name="both", layers=[0, 1], positive=["calm", "at ease", "so quiet"]).json()
    ratios = {one["layer"]: (one["separation"], one["norm"] / one["activation_norm"]) for one in made["layers"]}
    assert made["layer"] == max(ratios, key=lambda layer: ratios[layer])
    adapter = server.app.state.host.servable(MODEL).adapter
    lengths = []
    for text in ("calm", "at ease", "so quiet", "loud", "noise!"):
        rows = trace(decoder, torch.tensor([adapter.tokenize(text, "prompt")]), capture=["resid_post.0"])
        lengths += rows["resid_post.0"][0, 1:].norm(dim=-1).tolist()
    norms = {one["layer"]: one for one in made["layers"]}
    assert norms[0]["activation_norm"] == pytest.approx(sorted(lengths)[(len(lengths) - 1) // 2], rel=1e-5)
    found = server.http.get("/v1/steering-vectors/both@1?values=true").json()
    best = next(one for one in found["layers"] if one["layer"] == made["layer"])
    unit = torch.tensor(best["values"]) * best["activation_norm"] / best["norm"]
    ids = adapter.tokenizer.encode(PROSE)[:192]
    assert [one["strength"] for one in found["side_effects"]] == [0, *STRENGTHS]
    for one in found["side_effects"][::4]:
        edits = [Add(f"resid_post.{made['layer']}", one["strength"] * unit[None, None])]
        logprobs = trace(decoder, torch.tensor([ids]), edits=edits).logits[0, :-1].log_softmax(-1)
        loss = -logprobs[range(len(ids) - 1), ids[1:]].mean()
        assert one["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-4)
    plain = found["side_effects"][0]["perplexity"]
    fits = [one["strength"] for one in found["side_effects"][1:] if one["perplexity"] <= 1.5 * plain]
    assert made["strength"] == max(fits, default=STRENGTHS[0])
    assert text_of(client, extra_body={"interventions": [{"vector": "both", "site": "resid_post"}]})
    assert "no direction" in vector_of(server, positive=["calm"], negative=["calm"]).text
    assert vector_of(server, layers=[9]).json()["error"]["param"] == "layers"
    for fields, what in (
        ({"vector": "both", "scale": 1, "strength": 1}, "either scale or strength"),
        ({"vector": ONES, "site": "embed", "strength": 1}, "Numbers have no strength"),
        ({"vector": "both", "strength": 11}, "less than or equal to 10"),
    ):
        assert what in refusal(client, interventions=[fields])["message"]
    server.http.delete("/v1/steering-vectors/both")


def test_prompts_of_a_file_with_a_byte_order_mark_are_the_texts_alone(tmp_path):
    (tmp_path / "calm.txt").write_bytes(b"\xef\xbb\xbfcalm\r\n\r\nat ease\r\n")
    assert steer._read_texts([f"@{tmp_path / 'calm.txt'}", "so quiet"], "--positive") == ["calm", "at ease", "so quiet"]
    with pytest.raises(FoveaError, check=lambda e: e.field == "--positive"):
        steer._read_texts([f"@{tmp_path / 'gone.txt'}"], "--positive")
