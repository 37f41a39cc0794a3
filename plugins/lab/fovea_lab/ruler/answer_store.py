"""Answers of earlier runs in a JSONL file, so that a run that was stopped goes on."""

import json
from collections.abc import Sequence
from pathlib import Path

from fovea_lab.ruler.report import Prediction


def read_answers(store: Path | None) -> dict[str, Prediction]:
    """Read the answers of earlier runs by key; lines that a crash cut short are left out."""
    if store is None or not store.is_file():
        return {}
    rows = [json.loads(line) for line in store.read_text("utf-8").splitlines() if line.endswith("}")]
    return {row.pop("key"): Prediction.model_validate(row) for row in rows if "key" in row}


def append_answers(store: Path | None, keys: Sequence[str], predictions: Sequence[Prediction]) -> None:
    """Append answers with their keys; without a file nothing is kept."""
    if store is None:
        return
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.open("a", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"key": key, **one.model_dump(mode="json")}) + "\n"
            for key, one in zip(keys, predictions, strict=True)
        )
