"""Routes with memory are listed in a replica's record, so that the gateway sends continuations to the same one."""

from fastapi import FastAPI

from fovea.api.replica import route_fields
from services.llm_longctx.api import embeddings, openai, responses


def test_chats_completions_and_responses_are_affine():
    app = FastAPI()
    for module in (embeddings, openai, responses):
        app.include_router(module.router)
    found = route_fields(app.openapi(), lambda path: path.startswith("/v1"))
    assert set(found["affine"]) == {"/v1/chat/completions", "/v1/completions", "/v1/responses"}
    assert "/v1/embeddings" in found["routes"]
