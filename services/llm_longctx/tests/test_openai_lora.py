"""LoRA adapters over HTTP, with the openai client and as vLLM's clients load them."""

import asyncio
import base64
import json
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
import torch
from safetensors.torch import save, save_file
from typer.testing import CliRunner

from fovea import AsyncClient, Client
from fovea.cli.main import app
from fovea.errors import NotFound, QueueFull
from services.llm_longctx.api import lora
from services.llm_longctx.serving.lora import store
from services.llm_longctx.serving.lora.loaded import LoadedAdapters
from services.llm_longctx.tests.conftest import HELLO, MODEL, Server, app_of, go_on, say, text_of
from shared.lm.lora import LoraAdapter, LowRank

PREFIX = "base_model.model.model.layers"
CONFIG = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "up_proj"]}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    draw, found = torch.Generator().manual_seed(seed), {}
    for layer in range(2):
        for place, out in (("self_attn.q_proj", 32), ("self_attn.v_proj", 16), ("mlp.up_proj", 48)):
            name = f"{PREFIX}.{layer}.{place}.lora"
            found[f"{name}_A.weight"] = torch.randn(3, 32, generator=draw)
            found[f"{name}_B.weight"] = torch.randn(out, 3, generator=draw) * 0.3
    return found


def body(name: str, seed: int = 0, **more) -> dict:
    weights = base64.b64encode(save(tensors(seed))).decode()
    return {"name": name, "config": CONFIG, "weights": weights} | more


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for name, seed in (("house-style", 5), ("broken", 6)):
        (folder / name).mkdir()
        facts = CONFIG if name != "broken" else CONFIG | {"use_dora": True}
        (folder / name / "adapter_config.json").write_text(json.dumps(facts))
        save_file(tensors(seed), folder / name / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def server(folder, shared, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    with Server(app_of(folder, data, lora.router, llm_adapters=shared, llm_model=str(folder))) as running:
        yield running


def send(server, verb: str, path: str, tenant: str = "local", **more) -> httpx2.Response:
    headers = {"x-fovea-tenant": tenant, "content-type": "application/json"}
    return server.http.request(verb, path, headers=headers, **more)


def test_an_uploaded_adapter_is_a_model_of_its_tenant(server, client):
    made = send(server, "POST", "/v1/lora-adapters", json=body("mine"))
    assert (made.status_code, made.json()["parent"], made.json()["rank"], made.json()["modules"]) == (200, MODEL, 3, 6)
    listed = {one.id: one for one in client.models.list().data}
    assert listed["mine"].parent == MODEL
    assert listed[MODEL].id
    assert client.models.retrieve("mine").parent == MODEL
    assert send(server, "GET", "/v1/models/mine", "other").status_code == 404
    plain, mine = text_of(client), say(client, model="mine")
    assert mine.model == "mine"
    assert mine.choices[0].message.content != plain
    streamed = "".join(c.choices[0].delta.content or "" for c in say(client, model="mine", stream=True) if c.choices)
    assert streamed == mine.choices[0].message.content
    assert text_of(client) == plain
    ids = {one["id"] for one in send(server, "GET", "/v1/models", "other").json()["data"]}
    assert ids == {MODEL, "house-style", "broken"}
    listed = send(server, "GET", "/v1/lora-adapters").json()["data"]
    assert [one["id"] for one in listed] == ["broken", "house-style", "mine"]
    assert send(server, "DELETE", "/v1/lora-adapters/mine").json()["deleted"] is True
    with pytest.raises(openai.NotFoundError):
        say(client, model="mine")


def test_neighbours_and_two_tenants_with_one_name_keep_their_answers(server, client):
    for tenant, seed in (("a", 1), ("b", 2)):
        assert send(server, "POST", "/v1/lora-adapters", tenant, json=body("style", seed)).status_code == 200

    def ask(who):
        tenant, model = who
        fields = {"model": model, "messages": HELLO, "max_tokens": 24, "temperature": 0, "logprobs": True}
        found = send(server, "POST", "/v1/chat/completions", tenant, json=fields).json()
        content = found["choices"][0]["logprobs"]["content"]
        return [one["token"] for one in content], pytest.approx([one["logprob"] for one in content], abs=1e-4)

    callers = [("a", "style"), ("b", "style"), ("a", MODEL), ("b", "house-style")]
    alone = [ask(who) for who in callers]
    assert len({"".join(tokens) for tokens, _ in alone}) == 4
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, callers))
    assert [(tokens, logprobs.expected) for tokens, logprobs in together] == alone


def test_vllms_routes_load_from_the_servers_folder_and_unload(server, client):
    loading = {"lora_name": "loaded", "lora_path": "house-style"}
    found = send(server, "POST", "/v1/load_lora_adapter", json=loading)
    assert (found.status_code, found.text) == (200, "Success: LoRA adapter 'loaded' added successfully.")
    assert go_on(client, model="loaded").choices[0].text == go_on(client, model="house-style").choices[0].text
    assert send(server, "POST", "/v1/load_lora_adapter", json=loading).status_code == 409
    assert send(server, "POST", "/v1/unload_lora_adapter", json={"lora_name": "loaded"}).status_code == 200
    assert send(server, "POST", "/v1/unload_lora_adapter", json={"lora_name": "loaded"}).status_code == 404
    for path in ("../..", "/etc", "nothing"):
        refused = send(server, "POST", "/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": path})
        assert refused.status_code in {400, 404}, path


def test_the_command_and_the_package_add_list_and_delete(server, shared):
    def run(*words: str) -> str:
        found = CliRunner().invoke(app, ["adapters", *words, "--url", server.url])
        assert found.exit_code == 0, found.output
        return found.output

    assert "rank 3, 6 layers of tiny-llama" in run("add", str(shared / "house-style"), "--name", "from-cli")
    assert "from-cli" in run("list")
    assert json.loads(run("list", "--json").splitlines()[0])["id"] == "broken"
    with Client(server.url) as client:
        assert {one.id: one.is_shared for one in client.lora_adapters.list()}["from-cli"] is False
        with pytest.raises(NotFound, match="adapter_config"):
            client.lora_adapters.add(shared)

    async def add_again() -> str:
        async with AsyncClient(server.url) as client:
            await client.lora_adapters.delete("from-cli")
            made = await client.lora_adapters.add(shared / "house-style", "again")
            names = [one.id for one in await client.lora_adapters.list()]
            return (await client.lora_adapters.delete(made.id)).id if made.id in names else ""

    assert asyncio.run(add_again()) == "again"
    assert run("add", str(shared / "house-style"), "--name", "gone")
    assert run("delete", "gone") == "deleted: gone\n"


@pytest.mark.parametrize(("changed", "status", "what"), [
    ({"name": MODEL}, 409, "called"), ({"name": "house/style"}, 400, "name"),
    ({"model": "nobody"}, 404, "nobody"), ({"weights": "%%%"}, 400, "base64"),
    ({"weights": base64.b64encode(b"\xff" * 99).decode()}, 400, "safetensors"),
    ({"weights": base64.b64encode(save({"a": torch.zeros(1)})).decode()}, 400, "'a'"),
    ({"config": CONFIG | {"use_dora": True}}, 400, "use_dora"), ({"config": CONFIG | {"r": 4}}, 400, "must be"),
    ({"config": {}}, 400, "only LORA"), ({"config": CONFIG | {"\ud800": 1}}, 400, "ud800"),
    ({"config": CONFIG | {"r": "\ud800"}}, 400, "rank"),
    ({"config": CONFIG | {"revision": "x" * 70_000}}, 413, "65,536"), ({"wrong": 1}, 400, "wrong"),
])  # fmt: skip
def test_what_can_not_be_served_is_refused(server, changed, status, what):
    found = send(server, "POST", "/v1/lora-adapters", content=json.dumps(body("refused") | changed))
    assert (found.status_code, what in found.text) == (status, True), found.text


def test_a_configuration_may_hold_what_only_json_can(server):
    odd = body("odd", config=CONFIG | {"base_model_name_or_path": "\ud800", "lora_dropout": 1e400})
    assert send(server, "POST", "/v1/lora-adapters", content=json.dumps(odd)).status_code in {200, 400}
    assert send(server, "GET", "/v1/models").status_code == 200


def test_a_shared_folder_that_can_not_be_served_says_why(client):
    with pytest.raises(openai.BadRequestError, match="use_dora"):
        say(client, model="broken")


def test_a_tenant_has_so_many_adapters_and_bytes(server, monkeypatch):
    monkeypatch.setattr(store, "MAX_ADAPTERS", 1)

    def add(tenant, name):
        return send(server, "POST", "/v1/lora-adapters", tenant, json=body(name)).status_code

    assert [add("few", name) for name in ("one", "two")] == [200, 429]
    for limit, status in (("MAX_TOTAL_BYTES", 429), ("MAX_BYTES", 413)):
        monkeypatch.setattr(store, limit, 100)
        assert add("small", "one") == status


def test_adapters_in_memory_are_those_in_use_and_the_latest():
    def build(digest: str) -> LoraAdapter:
        return LoraAdapter(digest, {torch.nn.Linear(1, 1): LowRank(torch.zeros(1, 8), torch.zeros(8, 1))})

    held, built = LoadedAdapters(most=128), []

    def get(digest: str) -> LoraAdapter:
        return held.get(digest, lambda: built.append(digest) or build(digest))

    used = get("a")
    get("b")
    get("c")  # b goes: nobody uses it
    assert get("a") is used
    get("b")
    assert built == ["a", "b", "c", "b"]
    also = get("b")
    with pytest.raises(QueueFull, match="in use"):
        get("d")
    assert (used.digest, also.digest) == ("a", "b")


def test_another_configuration_of_a_shared_adapter_counts_at_once(client, shared):
    """Its scale is alpha over rank: with alpha 0 the adapter adds nothing."""
    ask = {"model": "house-style", "temperature": 0}
    adapted = text_of(client, **ask)
    file = shared / "house-style" / "adapter_config.json"
    file.write_text(json.dumps(CONFIG | {"lora_alpha": 0}))
    try:
        assert text_of(client, **ask) == text_of(client, temperature=0) != adapted
    finally:
        file.write_text(json.dumps(CONFIG))
