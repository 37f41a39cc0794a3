"""What the tests of this service share: golden data and the released label sets."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from services.relevance_judge.parsing.trec import read_qrels

GOLDEN = Path(__file__).parent / "golden"


@cache
def _labels(name: str) -> dict[tuple[str, str], int]:
    return read_qrels(GOLDEN / "llmjudge" / "scores" / f"{name}.txt.gz")


@pytest.fixture(scope="session")
def released() -> Any:
    return _labels


@pytest.fixture(scope="session")
def golden() -> Any:
    return lambda path: json.loads((GOLDEN / path).read_text())


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return GOLDEN
