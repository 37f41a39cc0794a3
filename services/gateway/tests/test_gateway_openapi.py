"""The gateway's view of the whole: models, readiness, the joined document, the reference page."""

import asyncio
import re
from typing import Any

import pytest

from services.gateway.http import openapi
from services.gateway.http.reference_operations import group_operations

CHAT = {"id": "smollm2", "object": "model", "created": 1, "owned_by": "fovea", "task": "chat"}
CHAT |= {"service": "llm", "ready": True}
SEG = {**CHAT, "id": "pranet", "task": "segment", "service": "seg", "paper": {"year": 2020}, "version": "2"}


@pytest.fixture
async def scene(gateway, toy):
    seg = await toy(documents={"models": {"data": [SEG]}, "openapi": document("/v1/segment", "Mask", "number")})
    chat = document("/v1/chat/completions", "Mask", "string")
    llm = await toy(documents={"models": {"data": [CHAT]}, "openapi": chat})
    scene = await gateway()
    scene.announce(seg.url, service="seg", name="s", models=("pranet",), routes=("/v1/segment",))
    scene.announce(llm.url, service="llm", name="l", models=("smollm2",), routes=("/v1/chat/completions",))
    scene.seg, scene.llm = seg, llm
    return scene


def document(path: str, name: str, kind: str) -> dict[str, Any]:
    schema = {"type": "object", "title": name, "properties": {"area": {"type": kind, "description": "How much."}}}
    body = {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}
    done = {"200": {"description": "Done"}}
    operation = {"operationId": "run", "summary": "Run it", "requestBody": body, "responses": done}
    return {
        "openapi": "3.1.0",
        "paths": {path: {"post": operation}, "/livez": {"get": operation}, "/v2/models/{name}": {"get": operation}},
        "components": {"schemas": {name: schema, "Same": {"type": "string"}}},
    }


async def test_all_models_are_one_list_that_is_asked_for_at_most_once_a_second_and_chat_comes_first(scene):
    await asyncio.gather(*(scene.client.get("/v1/models") for _ in range(5)))
    scene.seg.documents["models"] = {"data": []}
    listed = (await scene.client.get("/v1/models")).json()
    assert (listed["object"], [m["id"] for m in listed["data"]]) == ("list", ["smollm2", "pranet"])
    assert listed["data"][1]["paper"] == {"year": 2020}
    only = (await scene.client.get("/v1/models?task=segment")).json()
    assert [m["id"] for m in only["data"]] == ["pranet"]
    await scene.client.get("/v1/models/pranet")
    await scene.client.get("/v1/models/smollm2/example")
    assert [s["path"] for s in scene.seg.seen] == ["/v1/models/pranet"], "a card comes from the service that has it"
    assert [s["path"] for s in scene.llm.seen] == ["/v1/models/smollm2/example"]


async def test_a_model_whose_service_is_away_and_one_of_an_upstream_without_a_list_are_listed(
    scene, monkeypatch, gateway, toy
):
    monkeypatch.setattr("services.gateway.routes.model_list.MAX_AGE_S", 0)
    await scene.client.get("/v1/models")
    scene.registry.pick("seg").changed = float("-inf")
    listed = (await scene.client.get("/v1/models")).json()["data"]
    assert {m["id"]: m["ready"] for m in listed} == {"smollm2": True, "pranet": False}
    upstream = await toy(documents={"models": {"detail": "a Triton server knows no such list"}})
    scene = await gateway()
    scene.announce(upstream.url, service="triton", models=("densenet",), routes=())
    entry = (await scene.client.get("/v1/models")).json()["data"][0]
    assert (entry["id"], entry["object"], entry["service"], entry["ready"]) == ("densenet", "model", "triton", True)


async def test_adapters_are_listed_for_their_tenant_alone(scene):
    adapted = {**CHAT, "id": "style", "parent": "smollm2"}
    for tenant in ("ann", "local"):
        scene.llm.documents[f"models of {tenant}"] = {"data": [CHAT, {**adapted, "id": f"{tenant}-style"}]}
    models = scene.app.state.gateway.models
    for tenant, more in (("ann", ["ann-style"]), ("bob", []), (None, [])):
        assert [m["id"] for m in await models.list_models("chat", tenant)] == ["smollm2", *more]
    listed = (await scene.client.get("/v1/models")).json()["data"]
    assert [(m["id"], m.get("parent")) for m in listed[:2]] == [("smollm2", None), ("local-style", "smollm2")]
    assert [m["id"] for m in listed[2:]] == ["pranet"]


async def test_readiness_names_who_is_not_ready_and_every_answer_has_security_headers_and_a_request_id(scene):
    good = await scene.client.get("/readyz")
    assert (good.status_code, good.json()["not_ready"], good.json()["redis"]) == (200, [], "none")
    scene.announce("http://127.0.0.1:1", service="detection", name="d", ready=False)
    bad = await scene.client.get("/readyz")
    assert (bad.status_code, bad.json()["not_ready"]) == (503, ["detection"])
    assert bad.json()["services"]["detection"] == {"ready": 0, "alive": 1, "requests": 0}
    assert {(await scene.client.get(path)).status_code for path in ("/health", "/ping")} == {503}
    assert bad.json()["reasons"] == {"detection": "its replicas are still loading"}
    in_oip = await scene.client.get("/v2/health/ready")
    assert (in_oip.status_code, in_oip.json()) == (503, {"error": "Not ready: detection."})
    for path in ("/livez", "/docs", "/v1/models", "/nowhere", "/v1/models/pranet"):
        answer = await scene.client.get(path)
        told = [answer.headers.get(name) for name in ("x-content-type-options", "x-frame-options", "server")]
        assert (told, bool(answer.headers["x-request-id"])) == (["nosniff", "DENY", None], True)


async def test_open_inference_speaks_for_the_whole_fleet(scene):
    assert (await scene.client.get("/v2")).json()["name"] == "fovea"
    index = (await scene.client.post("/v2/repository/index", json={"ready": None})).json()
    found = {m["name"]: (m["state"], m["version"]) for m in index}
    assert found == {"smollm2": ("READY", "1"), "pranet": ("READY", "2")}
    assert (await scene.client.get("/v2/models/stats")).json() == {"model_stats": []}
    for service, upstream in (("seg", scene.seg), ("llm", scene.llm)):
        upstream.documents["stats"] = {"model_stats": [{"name": service}]}
    told = (await scene.client.get("/v2/models/stats")).json()["model_stats"]
    assert sorted(stats["name"] for stats in told) == ["llm", "seg"]


async def test_the_index_can_be_of_the_ready_only_and_says_why_others_are_not_and_what_makes_no_sense(served):
    failed = {**SEG, "ready": False, "state": "failed", "reason": "There are no weights."}
    loading = {**SEG, "id": "hardnet", "ready": False, "state": "loading"}
    scene = await served(fields={"documents": {"models": {"data": [CHAT, failed, loading]}}})
    everything = {m["name"]: m for m in (await scene.client.post("/v2/repository/index")).json()}
    assert (everything["pranet"]["state"], everything["pranet"]["reason"]) == ("UNAVAILABLE", "There are no weights.")
    assert everything["hardnet"]["state"] == "LOADING"
    only = (await scene.client.post("/v2/repository/index", json={"ready": True})).json()
    assert [m["name"] for m in only] == ["smollm2"]
    for body in (b"{", b"[]", b"true", b"null", b'{"ready": 1}', b"\xff", b"[" * 200_000):
        answer = await scene.client.post("/v2/repository/index", content=body)
        assert (answer.status_code, list(answer.json())) == (400, ["error"]), body[:20]


async def test_one_document_holds_all_routes_and_every_reference_leads_somewhere(scene):
    whole = (await scene.client.get("/openapi.json")).json()
    assert {"/v1/segment", "/v1/chat/completions", "/v1/jobs", "/v1/models", "/livez"} <= whole["paths"].keys()
    schemas = whole["components"]["schemas"]
    for reference in set(re.findall(r'#/components/schemas/([^"\']+)', str(whole))):
        assert reference in schemas, reference
    assert {schemas[n]["properties"]["area"]["type"] for n in schemas if n.endswith("Mask")} == {"number", "string"}
    assert [n for n in schemas if n.endswith("Same")] == ["Same"]
    ids = re.findall(r"'operationId': '([^']+)'", str(whole))
    assert (len(ids), "202" in whole["paths"]["/v1/segment"]["post"]["responses"]) == (len(set(ids)), True)
    assert whole["paths"]["/v1/segment"]["post"]["tags"] == ["Segment, detect, classify and restore images"]
    assert "operationId" in whole["paths"]["/livez"]["get"]


async def test_the_reference_page_shows_every_operation_without_other_hosts_or_inline_code(scene):
    page = await scene.client.get("/docs")
    policy = page.headers["content-security-policy"]
    assert ("default-src 'none'" in policy, "unsafe" in policy) == (True, False)
    assert not re.search(r'(?:src|href)="(?:https?:)?//|<script>| style=|insecure-local', page.text)
    shown = ("/v1/segment", "area: number", "How much.", 'id="authentication"', "<td>504</td>")
    for told in (*shown, "67,108,864 bytes", "FOVEA_MAX_PIXELS"):
        assert told in page.text
    for file, kind in (("style.css", "text/css"), ("search.js", "text/javascript")):
        assert (await scene.client.get(f"/docs/{file}")).headers["content-type"].startswith(kind)


def test_an_example_is_a_curl_command_that_can_be_typed_and_schemas_may_refer_to_themselves():
    for method, operation, wanted in (
        ("get", {"parameters": [{"name": "id", "in": "path", "example": "7"}]}, 'curl "$FOVEA_URL/v1/a/7"'),
        ("delete", {"parameters": [{"name": "k", "in": "query", "example": 2}]}, '/v1/a/{id}?k=2" \\\n  -X DELETE'),
        ("post", json_body({"n": 1}), SENT + " '{\"n\": 1}'"),
        ("post", json_body({"text": "it's"}), SENT + " @request.json"),
        ("post", PICTURE, "-F image=@image.jpg \\\n  -F area=1"),
        ("post", FILM, "--data-binary @drive.mp4"),
    ):
        whole = {"paths": {"/v1/a/{id}": {method: {"responses": {}, **operation}}}}
        assert wanted in group_operations(whole)[0].operations[0].curl
    ref = {"$ref": "#/components/schemas/Tree"}
    tree = {"type": "object", "properties": {"children": {"type": "array", "items": ref}}}
    post = {"requestBody": {"content": {"application/json": {"schema": ref}}}, "responses": {"200": {}}}
    whole = {"paths": {"/a": {"post": post}}, "components": {"schemas": {"Tree": tree}}}
    (group,) = group_operations(whole)
    assert (group.title, group.operations[0].bodies[0][1][:11]) == ("gateway", "children: [")


MASK = {"schema": {"type": "object", "properties": {"image": {"format": "binary"}, "area": {"type": "number"}}}}


def json_body(example: Any, **more: Any) -> dict[str, Any]:
    return {"requestBody": {"content": {"application/json": {"example": example}, **more}}}


SENT = "-H 'content-type: application/json' \\\n  -d"
PICTURE = json_body({"image": "x" * 90, "area": 1}, **{"multipart/form-data": MASK})
FILM = {"requestBody": {"content": {"video/mp4": {"example": "@drive.mp4"}}}}


async def test_the_document_and_the_page_are_made_once_compressed_and_known_by_their_etag(scene, monkeypatch):
    made, join = [], openapi.join_documents
    monkeypatch.setattr(openapi, "join_documents", lambda *given, **more: made.append(0) or join(*given, **more))
    monkeypatch.setattr(openapi, "MAX_AGE_S", 0.0)
    pages = [await scene.client.get(path) for path in ("/openapi.json", "/docs") * 3]
    assert (len(made), len({answer.content for answer in pages[::2]})) == (1, 1)
    for path in ("/openapi.json", "/docs"):
        plain = await scene.client.get(path, headers={"accept-encoding": "identity"})
        packed = await scene.client.get(path, headers={"accept-encoding": "br;q=1.0, gzip;q=0.8"})
        assert (plain.headers.get("content-encoding"), packed.headers["content-encoding"]) == (None, "gzip")
        assert (packed.content, int(packed.headers["content-length"]) < len(plain.content) / 2) == (plain.content, True)
        assert "gzip" not in (await scene.client.get(path, headers={"accept-encoding": "gzip;q=0"})).headers.values()
        tag = plain.headers["etag"]
        assert packed.headers["etag"] == tag
        same = await scene.client.get(path, headers={"if-none-match": f'"old", W/{tag}'})
        assert (same.status_code, same.content) == (304, b"")
        assert (await scene.client.get(path, headers={"if-none-match": '"old"'})).status_code == 200
    scene.seg.documents["openapi"] = document("/v1/other", "Mask", "number")
    assert "/v1/other" in (await scene.client.get("/openapi.json")).json()["paths"]
    assert ("/v1/other" in (await scene.client.get("/docs")).text, len(made)) == (True, 2)


async def test_a_service_without_a_document_is_not_asked_at_every_request(scene):
    asked = []

    async def fetch_text(http: str, path: str) -> str | None:
        asked.append(http)

    scene.app.state.gateway.client.fetch_text = fetch_text
    for _ in range(5):
        assert (await scene.client.get("/openapi.json")).status_code == 200
    assert sorted(asked) == sorted([scene.seg.url, scene.llm.url])
