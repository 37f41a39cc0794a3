"""One request answered by several methods: over the wire, in streams, what is refused, and the command."""

import pytest

from fovea_steering import comparison
from services.llm_longctx.engine import Engine
from services.llm_longctx.methods import method
from services.llm_longctx.tests.conftest import go_on, say, tiny_decoder
from services.llm_longctx.tests.test_openai_longctx import DUO, LONG, ROLES, ask
from services.llm_longctx.tests.test_openai_lora import body as make_adapter


def test_methods_are_compared_on_one_request(client, codec):
    asked = {"compare": ["dense", DUO, {"method": "dense"}], "logit_bias": {"256": -100}}
    found = go_on(client, LONG[:120], extra_body=asked, max_tokens=9)
    same = {"max_tokens": 9, "logit_bias": {"256": -100}}
    alone = [ask(client, way, **same).choices[0] for way in ({"method": "dense"}, DUO, {"method": "dense"})]
    assert [one.text for one in found.choices] == [one.text for one in alone]
    first, duo, same = found.comparison
    assert (first["index"], first["kl"], same["agreement"]) == (0, None, 1.0)
    assert same["kl"] == pytest.approx([0.0] * 9, abs=1e-5)  # rows of one batch may be rounded apart by the library
    assert duo["longctx"]["kv_bytes"] < first["longctx"]["kv_bytes"] == same["longctx"]["kv_bytes"]
    engine = Engine(tiny_decoder())
    pair = [engine.open(), engine.open(method("duo", roles=ROLES, sink=4, recent=16))]
    logits = [one.prefill(codec.encode(LONG[:120], special=False))[-1] for one in pair]
    wanted, agrees = [], []
    for _ in range(9):
        p, q = (one.double().log_softmax(-1) for one in logits)
        wanted.append(float((p.exp() * (p - q)).sum()))
        agrees.append(bool(p.argmax() == q.argmax()))
        logits = [one.step(int(p.argmax())) for one in pair]
    assert duo["kl"] == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) > 0.01
    assert (duo["mean_kl"], duo["agreement"]) == pytest.approx((sum(wanted) / 9, sum(agrees) / 9), abs=1e-5)


def test_a_compared_chat_streams_every_answer_and_counts_the_tokens_that_are_held(client, monkeypatch):
    monkeypatch.setattr(comparison, "MAX_NUMBERS", 4 * 272)
    body = {"compare": ["dense", DUO], "interventions": [{"type": "scale", "site": "z.1", "factor": 0, "heads": [1]}]}
    whole = say(client, extra_body=body, max_tokens=8)
    texts, compared = {0: "", 1: ""}, []
    for chunk in say(client, extra_body=body, max_tokens=8, stream=True):
        for one in chunk.choices:
            texts[one.index] += one.delta.content or ""
        compared += getattr(chunk, "comparison", None) or []
    assert list(texts.values()) == [one.message.content for one in whole.choices]
    assert (compared[0].get("kl"), whole.comparison[0]["kl"], len(compared[1]["kl"])) == (None, None, 4)
    assert compared[1]["kl"] == pytest.approx(whole.comparison[1]["kl"], abs=1e-5)  # batches may be rounded apart


def test_methods_are_compared_in_the_adapted_model(server, client):
    server.http.post("/v1/lora-adapters", json=make_adapter("compared", 4))
    found = go_on(client, LONG[:120], model="compared", extra_body={"compare": ["dense", "dense"]}, max_tokens=6)
    assert found.comparison[1]["kl"] == pytest.approx([0.0] * 6, abs=1e-5)


def test_answers_without_a_token_are_not_compared(client):
    found = go_on(client, LONG[:120], extra_body={"compare": ["dense", DUO]}, max_tokens=0)
    assert [one["kl"] for one in found.comparison] == [None, []]
    assert {(one["mean_kl"], one["agreement"]) for one in found.comparison} == {(None, None)}


@pytest.mark.parametrize(("bad", "param", "what"), [
    ({"compare": ["dense", "nothing"]}, "longctx.method", "nothing"),
    ({"compare": ["dense", DUO], "n": 2}, "compare", "n = 1"),
    ({"compare": ["dense", DUO], "longctx": DUO}, "compare", "no longctx beside it"),
    ({"compare": ["dense", DUO], "prompt": ["a", "b"]}, "compare", "one prompt"),
])  # fmt: skip
def test_a_comparison_that_can_not_be_made_is_a_clear_400(server, bad, param, what):
    answer = server.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2} | bad)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert what in answer.json()["error"]["message"]


def test_the_command_compares_methods_with_the_first(run):
    words = ["compare", "Hello,", "you", "-t", "0", "-n", "4"]
    _, (head, dense, other), _ = run(*words, "--method", "knorm kv_ratio=0.1")
    assert head.split("\t") == ["method", "KL", "agreement", "KV bytes", "of dense", "note", "answer"]
    assert (dense.split("\t")[:3], other.split("\t")[0]) == (["dense", "", ""], "knorm")
    assert "can't keep within" in other
    code, lines, _ = run(*words, "--method", "dense", "--method", "q8", "--format", "table")
    assert code != 0
    assert not lines
    _, lines, _ = run(*words, "--method", "knorm", "--method", "", "--format", "table")
    assert (lines[0], lines[-3].split()[:3]) == ("knorm:", ["method", "KL", "agreement"])
