"""Models of tests: their Cards, services over a few of them, and answers and problems over HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.testclient import TestClient

from shared.registry import Card, Paper
from shared.serving.build_app import build
from shared.serving.tests.ready_client import ready_client
from shared.settings import Settings

Answer = TypeVar("Answer", bound=BaseModel)


def toy_card(name: str, task: str, **facts: Any) -> Card:
    paper = Paper(title="None", venue="none", year=2026)
    return Card(**{"name": name, "task": task, "summary": "A toy.", "paper": paper, "licence": "none", **facts})


@contextmanager
def client_of(folder: Path, service: str, servables: Any, routers: Any = (), **more: Any) -> Iterator[TestClient]:
    """A client of a service over these models, once they answer; `more` are settings."""
    settings = Settings(_env_file=None, data_dir=folder, intra_op_threads=1, shutdown_grace_s=1, **more)
    with ready_client(build(service, routers=routers, servables=servables, settings=settings)) as made:
        yield made


def answered(reply: Any, kind: type[Answer]) -> Answer:
    assert reply.status_code == 200, reply.text
    return kind.model_validate_json(reply.content)


def ok(reply: Any) -> Any:
    """The JSON of a reply that must tell success."""
    assert reply.status_code == 200, reply.text
    return reply.json()


def problem(reply: Any, status: int, field: str) -> dict[str, Any]:
    """The problem that a reply must be: about this field, and with nothing of the code."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in reply.text
    found: dict[str, Any] = reply.json()
    assert found["field"] == field
    assert found["request_id"]
    return found
