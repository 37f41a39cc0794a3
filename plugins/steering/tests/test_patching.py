"""Activation patching over HTTP: every way to name rows, sweeps, limits, the package and the commands."""

import csv
import io
import itertools
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

import fovea
from fovea_steering import sweeps
from services.llm_longctx.tests.conftest import MODEL, go_on, say, text_of
from services.llm_longctx.tests.test_openai_lora import body as make_adapter
from shared.serving.batching import BatchOptions

CLEAN, CORRUPT = "When Ann and Bob met, Bob ran to", "When Ann and Bob met, Ann ran to"
WIDTH, HEADS, HEAD = 32, 4, 8
N = len(CLEAN)
A, B = 32, 33  # token ids of these letters


def keep(client, site, positions="prompt", prompt=CLEAN):
    capture = [{"type": "activation", "site": site, "positions": positions, "keep": True}]
    (found,) = go_on(client, prompt, max_tokens=1, extra_body={"capture": capture}).choices[0].captured
    return found


def scores(client, *changes, prompt=CORRUPT, **more):
    answer = go_on(client, prompt, max_tokens=1, logprobs=20, extra_body={"interventions": list(changes)} | more)
    return answer.choices[0].logprobs.top_logprobs[0]


def change(site="resid_post.0", **more):
    return {"type": "set", "site": site} | more


@pytest.mark.parametrize("positions", [[-1], [22, 23, 24], "prompt", "all"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_patch_from_a_capture_writes_its_rows(client, layer, positions):
    at = [one % N for one in positions] if isinstance(positions, list) else list(range(N))
    for site in (f"resid_post.{layer}", f"blocks.{layer}.hook_resid_post"):
        kept = keep(client, site)
        assert kept["site"] == f"resid_post.{layer}"
        listed = change(site, values=[kept["values"][one] for one in at], positions=at)
        found = scores(client, change(site, **{"from": kept["id"], "positions": positions}))
        assert found == pytest.approx(scores(client, listed), abs=1e-4)
        assert (found != pytest.approx(scores(client), abs=1e-2)) == (layer == 0 or N - 1 in at)


def test_vectors_means_and_rows_in_any_order_are_rows_at_their_positions(client):
    kept, row = keep(client, "resid_post.0", [3, 5]), [float(i % 5 - 2) for i in range(WIDTH)]
    mean, other = np.mean(kept["values"], 0).tolist(), [-2 * x for x in row]
    turned = change(**{"from": kept["id"], "positions": [-1, 8], "from_positions": [5, 3 - N]})
    for short, rows, at in (
        (change(vector=row, positions=[4, 9]), [row, row], [4, 9]),
        (change(values=[row, other], positions=[9, 4]), [other, row], [4, 9]),
        (change(**{"from": [kept["id"]] * 2, "mean": True, "positions": [-1, 0]}), [mean, mean], [0, N - 1]),
        (turned, kept["values"], [8, N - 1]),
    ):
        assert scores(client, short) == pytest.approx(scores(client, change(values=rows, positions=at)), abs=1e-5)


def test_heads_of_a_site_are_patched_one_by_one(client):
    z = {one["positions"][0]: one for one in (keep(client, "z.1", [at], CORRUPT) for at in (7, N - 1))}
    own = np.array(z[N - 1]["values"][0])
    assert own.shape == (HEADS, HEAD)
    assert scores(client, change("z.1", **{"from": z[N - 1]["id"], "positions": [-1]})) == scores(client)
    foreign = np.array(z[7]["values"][0])
    other = {"from": z[7]["id"], "from_positions": [7], "positions": [-1], "heads": [2, 0]}
    patched = scores(client, change("blocks.1.attn.hook_z", **other))
    assert patched != scores(client)
    listed = {"values": [foreign[[2, 0]].tolist()], "positions": [-1], "heads": [2, 0]}
    assert scores(client, change("z.1", **listed)) == pytest.approx(patched, abs=1e-5)
    own[[0, 2]] = foreign[[0, 2]]
    assert scores(client, change("z.1", values=[own.tolist()], positions=[N - 1])) == pytest.approx(patched, abs=1e-5)
    assert scores(client, change("z.1", values=[foreign[2].tolist()], positions=[-1], heads=[2])) != patched


def test_patches_act_in_streams_and_chats_and_leave_neighbours_alone(client):
    capture = [{"type": "activation", "site": "resid_post.0", "positions": [0], "keep": True}]
    chunks = say(client, extra_body={"capture": capture}, max_tokens=3, stream=True)
    pieces = [one for chunk in chunks for one in getattr(chunk.choices[0], "captured", None) or []]
    assert [("id" in one, one["positions"] == []) for one in pieces] == [(False, False), (True, True)]
    body = {"interventions": [change(**{"from": pieces[1]["id"], "from_positions": [0], "positions": [-1]})]}
    plain, whole = text_of(client), text_of(client, extra_body=body)
    chunks = say(client, extra_body=body, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole != plain == text_of(client)


ONES = [1.0] * WIDTH
WRONG = {
    404: [({"from": "capture-" + "0" * 32}, "There is no capture"), ({"from": "capture-../x"}, "There is no capture")],
    400: [
        ({"from": "KEPT", "site": "resid_post.1"}, "has nothing of resid_post.1; it has resid_post.0"),
        ({"from": "KEPT", "positions": [7]}, "holds no token 7; it holds 3, 5"),
        ({"from": "KEPT", "positions": "decode"}, "holds no token of 'decode'; it holds 3, 5"),
        ({"from": ["KEPT"]}, "several captures need mean"),
        ({"from": "KEPT", "from_positions": [3], "positions": [1, 2]}, "1 rows need a list"),
        ({}, "exactly one of vector, values and from, not none"),
        ({"from": "KEPT", "vector": ONES}, "not vector, from"), ({"vector": ONES, "mean": True}, "need from"),
        ({"values": [ONES]}, "1 rows need a list of as many positions"),
        ({"values": [ONES] * 2, "positions": [-1, N - 1]}, "names a token twice"),
        ({"from": "KEPT", "from_positions": [3, 5], "positions": [-1, N - 1]}, "names a token twice"),
        ({"values": [[[1.0] * 8] * 3], "positions": [1], "site": "z.0"}, "this site needs 4 lists"),
        ({"values": [[[1.0] * 8] * 4], "positions": [1]}, "this site needs 32 numbers"),
        ({"vector": ONES, "positions": [N]}, f"There will be no token {N}"),
        ({"vector": ONES, "site": "blocks.0.hook_nothing"}, "There is no hook point"),
        ({"vector": ONES, "site": "blocks.0.attn.hook_pattern"}, "computed nowhere while serving"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("status", "case"), [(status, case) for status, cases in WRONG.items() for case in cases])
def test_a_patch_that_can_not_be_done_is_a_clear_4xx(client, status, case):
    fields, what = case
    if "KEPT" in str(fields):
        fields = json.loads(json.dumps(fields).replace("KEPT", keep(client, "resid_post.0", [3, 5])["id"]))
    with pytest.raises(openai.APIStatusError) as caught:
        scores(client, change() | fields)
    assert caught.value.status_code == status
    assert what in caught.value.body["message"]
    assert caught.value.body["param"].startswith("interventions")
    if "There is no" in what and status == 400:
        assert not {"scores", "pattern"} & set(re.findall(r"\w+", caught.value.body["message"]))


def test_positions_that_no_token_can_have_are_refused(client):
    def capture(at):
        asked = [{"type": "activation", "site": "resid_post.0", "positions": [at]}]
        return go_on(client, CLEAN, max_tokens=4, extra_body={"capture": asked}).choices[0].captured

    assert all(map(capture, (-N, N + 2)))
    for bad in (-N - 1, N + 3):
        with pytest.raises(openai.BadRequestError, match=rf"positions are −{N}…{N + 2}"):
            capture(bad)


def test_captures_belong_to_their_tenant_and_a_deleted_one_is_gone(client, server):
    kept = keep(client, "resid_post.0")["id"]
    patch = change(**{"from": kept})
    with pytest.raises(openai.NotFoundError, match="There is no capture"):
        scores(client.with_options(default_headers={"x-fovea-tenant": "other"}), patch)
    assert server.http.delete(f"/v1/captures/{kept}").json()["deleted"]
    with pytest.raises(openai.NotFoundError, match="kept for a day"):
        scores(client, patch)


def sweep(server, **more):
    body = {"prompt": CORRUPT, "source": CLEAN, "tokens": ["B", "A"], "site": "resid_post"} | more
    return server.http.post("/v1/sweeps", json=body)


def test_a_sweep_is_its_patches_one_by_one(client, server, codec):
    found = sweep(server).json()
    logits, difference = (np.array(found[name]) for name in ("logits", "logit_difference"))
    begin, end = ((run["logits"][0] - run["logits"][1]) for run in (found["prompt"], found["source"]))
    np.testing.assert_allclose(difference, logits[..., 0] - logits[..., 1], atol=1e-5)
    np.testing.assert_allclose(found["recovered"], (difference - begin) / (end - begin), atol=1e-3)

    def logprob(token: int, patch: dict) -> float:
        more = {"interventions": [patch], "logit_bias": {token: 100}}  # so that it is drawn, and has a log-probability
        return go_on(client, CORRUPT, max_tokens=1, logprobs=0, extra_body=more).choices[0].logprobs.token_logprobs[0]

    for layer, at in itertools.product(range(2), (0, 22, N - 1)):
        patch = change(f"resid_post.{layer}", **{"from": keep(client, f"resid_post.{layer}")["id"], "positions": [at]})
        both = [logprob(token, patch) for token in (B, A)]
        assert np.exp(both) == pytest.approx(found["probabilities"][layer][at], abs=1e-5)
        assert difference[layer][at] == pytest.approx(both[0] - both[1], abs=1e-4)
    assert (found["recovered"][1][N - 1], found["recovered"][0][0]) == pytest.approx((1, 0), abs=1e-4)
    assert found["forward_tokens"] == 2 * N + 2 * N * (N + 1) // 2
    few = {"layers": [1], "positions": [-1, 3], "site": "hook_resid_post"}
    part = sweep(server, **few, prompt=codec.encode(CORRUPT, special=False), tokens=[B, A]).json()
    assert (part["layers"], part["positions"], part["site"]) == ([1], [N - 1, 3], "resid_post")
    assert part["logits"][0] == [pytest.approx(found["logits"][1][at], abs=1e-4) for at in (N - 1, 3)]
    assert sweep(server, **few, source=CORRUPT).json()["recovered"] is None, "no way, and no share of it"


@pytest.mark.parametrize("positions", [[22, 24], [N - 1, 22]])
def test_heads_are_swept_at_some_positions_as_they_are_patched_alone(server, positions):
    grid = sweep(server, by="head", site="z", positions=positions).json()
    for head in range(HEADS):
        alone = sweep(server, by="head", site="z", positions=positions, heads=[head]).json()
        assert alone["logits"] == [[pytest.approx(row[head], abs=1e-4)] for row in grid["logits"]]
    assert np.ptp(np.array(grid["logits"])[0, :, 0]) > 1e-3, "heads differ"


@pytest.mark.parametrize(("more", "what", "param"), [
    ({"source": "short"}, "source has 5 tokens and prompt 32", "source"),
    ({"tokens": ["Bob"]}, "is not one token of this model, but 3: 'B', 'o', 'b'", "tokens[0]"),
    ({"tokens": [999]}, "is not one token", "tokens[0]"), ({"tokens": []}, "at least 1", "tokens"),
    ({"site": "scores"}, "sites are resid_pre, resid_mid", "site"),
    ({"site": "resid_post.1"}, "There is no site 'resid_post.1' of a layer", "site"),
    ({"layers": [2]}, "layers are 0…1", "layers"), ({"layers": [1, 1]}, "layers names one twice", None),
    ({"positions": [-1, N - 1]}, "positions names one twice", "positions"),
    ({"positions": [N]}, "no position 32", "positions"), ({"by": "head"}, "resid_post has no heads", "site"),
    ({"by": "head", "site": "z", "heads": [4]}, "no head 4", "heads"),
    ({"prompt": [999] * N}, "ids are below 272", "prompt"),
    ({"prompt": [{"role": "user", "content": "x" * 500}]}, "context", "prompt"),
    ({"model": "nobody"}, "nobody", "model"),
])  # fmt: skip
def test_a_sweep_that_can_not_be_done_is_a_clear_4xx(server, more, what, param):
    answer = sweep(server, **more)
    assert answer.status_code == (404 if param == "model" else 400), answer.text
    assert what in answer.json()["error"]["message"]
    assert param is None or answer.json()["error"]["param"] == param


def test_sweeps_are_bounded_need_the_scope_and_are_audited(server, monkeypatch):
    body = {"prompt": CORRUPT, "tokens": ["B"]}
    assert server.http.post("/v1/sweeps", json=body, headers={"x-fovea-scopes": "infer"}).status_code == 403
    answer = sweep(server)
    assert json.loads(answer.headers["x-fovea-audit"]) == {"act": "sweep", "model": "tiny-llama", "site": "resid_post"}
    monkeypatch.setattr(sweeps, "MAX_FORWARD_TOKENS", 991)
    assert (sweep(server).status_code, sweep(server, layers=[0]).status_code) == (413, 200)


def test_sweeps_run_one_after_another_in_a_bounded_queue_by_their_deadline_and_their_tokens_count(server, monkeypatch):
    found = sweep(server)
    assert found.json()["usage"]["prompt_tokens"] == found.json()["forward_tokens"] == 2 * N + 2 * N * (N + 1) // 2
    assert json.loads(found.headers["x-fovea-usage"])["cpu_seconds"] > 0
    running, together, plain = [0], [0], sweeps.PatchSweep.read

    def read(self):
        running[0] += 1
        together.append(running[0])
        time.sleep(0.3)
        running[0] -= 1
        return plain(self)

    monkeypatch.setattr(sweeps.PatchSweep, "read", read)
    monkeypatch.setattr(server.app.state.host.aside._queues["tiny-llama"], "_options", BatchOptions(size=1, depth=2))
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: sweep(server, layers=[0]), range(6)))
    assert ({a.status_code for a in answers}, max(together)) == ({200, 429}, 1)
    assert all(float(a.headers["retry-after"]) > 0 for a in answers if a.status_code == 429)
    body, headers = {"prompt": CORRUPT, "tokens": ["B"]}, {"x-fovea-deadline-ms": "100"}
    assert server.http.post("/v1/sweeps", json=body, headers=headers).status_code == 504


def test_the_client_library_sweeps_and_reads_captures(server, client):
    grid = {"source": CLEAN, "site": "attn.hook_z", "by": "head", "heads": [3, 1], "layers": [1]}
    wanted = server.http.post("/v1/sweeps", json={"prompt": CORRUPT, "tokens": ["B", A], **grid}).json()
    kept = keep(client, "resid_post.0", [3, 5])
    with fovea.Client(server.url) as ours:
        assert ours.sweep(CORRUPT, ["B", A], positions=None, **grid).model_dump(mode="json") == wanted
        assert ours.captures.get(f"/v1/captures/{kept['id']}")[:2] == b"PK"
        with np.load(io.BytesIO(ours.captures.get(kept["id"]))) as arrays:
            np.testing.assert_allclose(arrays["0.values"], kept["values"], rtol=1e-6)
        compared = ours.chat("Hello", max_tokens=3, compare=["dense", {"method": "knorm", "kv_ratio": 0.9}])
        assert [one.longctx.method for one in compared.comparison or ()] == ["dense", "knorm"]
        assert ours.captures.delete(kept["id"]).deleted
        with pytest.raises(fovea.FoveaError, match="There is no capture"):
            ours.captures.get(kept["id"])


def test_the_command_prints_a_grid_for_people_and_a_row_per_patch_for_programs(run, server):
    words = ["sweep", CORRUPT, "--source", CLEAN, "-t", "B", "-t", "A", "--site", "resid_post"]
    found = sweep(server).json()
    _, (head, *rows), _ = run(*words, "--format", "csv")
    columns = next(csv.reader([head]))
    assert columns[:3] + columns[-2:] == ["layer", "position", "text", "logit_difference", "recovered"]
    cells = list(csv.reader(rows))
    assert len(cells) == 2 * N
    assert [float(row[-1]) for row in cells] == [x for row in found["recovered"] for x in row]
    assert [float(row[4]) for row in cells] == [cell[0] for row in found["probabilities"] for cell in row]
    assert [row[2] for row in cells[:N]] == found["prompt_tokens"]
    assert json.loads(run(*words, "--json")[1][0]) == found
    _, (title, prompt, source, head, *rows), _ = run(*words, "-p", "-1", "-l", "1", "--format", "table")
    assert title == "resid_post of tiny-llama: recovered share of the logit difference"
    assert prompt.startswith(f"prompt: 'B' {found['prompt']['probabilities'][0]:.3f}, 'A' ")
    assert source.startswith("source: ")
    assert (head.split(), [row.split() for row in rows]) == (["layer", f"{N - 1}'o'"], [["1", "1.00"]])
    zeroed = ["sweep", CORRUPT, "-t", "B", "--site", "z", "--by-head", "--head", "2"]
    assert run(*zeroed)[1][0] == "layer\thead\tlogit 'B'\tprobability 'B'"
    assert run(*zeroed, "--format", "table")[1][0].endswith(": probability")
    code, _, err = run("sweep", CORRUPT, "-t", "Bob")
    assert (code, "is not one token of this model, but 3" in err) == (3, True)


def test_sweeps_run_in_the_adapted_model(server):
    server.http.post("/v1/lora-adapters", json=make_adapter("studied", 3))
    asked = {"prompt": "Once", "site": "resid_post", "positions": [-1], "tokens": ["a"]}
    grids = [server.http.post("/v1/sweeps", json=asked | {"model": name}).json() for name in (MODEL, "studied")]
    assert [grid["model"] for grid in grids] == [MODEL, "studied"]
    assert grids[0]["prompt"] != grids[1]["prompt"]
