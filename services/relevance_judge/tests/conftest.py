"""Shared by the tests of this service: golden data and the released label sets."""

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fovea.errors import FoveaError
from services.relevance_judge.judge import Judge
from services.relevance_judge.parsing.trec import parse_qrels
from services.relevance_judge.routes import rerank, router
from services.relevance_judge.schemas import JudgeOut
from shared.registry import CallContext
from shared.serving.build_app import build
from shared.settings import Settings
from tests.harness.models import ok
from tests.harness.waiting import wait_until

GOLDEN = Path(__file__).parent / "golden"


@cache
def _labels(name: str) -> dict[tuple[str, str], int]:
    with tarfile.open(GOLDEN / "llmjudge/scores.tar.xz") as archive, archive.extractfile(f"{name}.txt") as file:
        return parse_qrels(file.read().decode("utf8"))


@pytest.fixture(scope="session")
def released():
    return _labels


@pytest.fixture(scope="session")
def golden():
    return lambda path: json.loads((GOLDEN / path).read_text())


def post(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    """The answer of a route of the judge."""
    return ok(client.post(f"/v1/judge/{path}", json=body))


def judge_one(judge: Judge, **options: Any) -> JudgeOut:
    """The answer to one request; refusals are raised."""
    (found,) = judge.predict([judge.In.model_validate(options)], CallContext())
    if isinstance(found, FoveaError):
        raise found
    return found


@contextmanager
def serve_judges(folder: Path, kinds: dict[str, Any], **settings: Any) -> Iterator[TestClient]:
    """A client of the service with these judges; keyword arguments are settings."""
    told = Settings(_env_file=None, data_dir=folder, shutdown_grace_s=1, **settings)
    with TestClient(build("relevance-judge", routers=[router, rerank.router], servables=kinds, settings=told)) as made:
        if kinds:
            wait_until(lambda: made.get("/readyz").status_code == 200, 60, "the judges' readiness")
        yield made
