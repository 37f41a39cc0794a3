"""Documents stay where they were read: the record of a replica lists them."""

from fastapi import FastAPI

from fovea.api.replica import route_fields
from fovea_memory.routes import documents, sessions


def test_documents_are_affine_and_sessions_are_not():
    app = FastAPI()
    for module in (documents, sessions):
        app.include_router(module.router)
    found = route_fields(app.openapi(), lambda path: path.startswith("/v1"))
    assert set(found["affine"]) == {"/v1/documents/{document_id}"}
