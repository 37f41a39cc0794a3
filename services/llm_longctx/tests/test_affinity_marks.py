"""Routes that remember say so in the record of a replica, so that the gateway sends what continues to the same one."""

from fastapi import FastAPI

from services.llm_longctx.api import documents, embeddings, openai, responses, sessions
from shared.api.replica import route_fields


def test_chats_completions_responses_and_documents_are_affine():
    app = FastAPI()
    for room in (documents, embeddings, openai, responses, sessions):
        app.include_router(room.router)
    found = route_fields(app.openapi(), lambda path: path.startswith("/v1"))
    assert set(found["affine"]) == {
        "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/documents/{document_id}",
    }  # fmt: skip
    assert "/v1/embeddings" in found["routes"]
