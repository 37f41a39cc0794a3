"""Answers in JSONL files: of earlier runs, so that a run that was stopped goes on, and of peers on our samples."""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from fovea.cli.text_files import read_text
from fovea.errors import Malformed
from fovea_lab.ruler.report import Prediction
from fovea_lab.ruler.scoring import score


def read_answers(store: Path | None) -> dict[str, Prediction]:
    """Read the answers of earlier runs by key; lines that a crash cut short are left out."""
    if store is None or not store.is_file():
        return {}
    found = {}
    for line in store.read_text("utf-8").split("\n"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            found[row.pop("key")] = Prediction.model_validate(row)
    return found


def append_answers(store: Path | None, keys: Sequence[str], predictions: Sequence[Prediction]) -> None:
    """Append answers with their keys; without a file nothing is kept."""
    if store is None:
        return
    store.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"key": key, **one.model_dump(mode="json")} for key, one in zip(keys, predictions, strict=True))
    with store.open("ab+") as file:
        file.seek(max(file.seek(0, io.SEEK_END) - 1, 0))
        cut = b"" if file.read() in {b"", b"\n"} else b"\n"  # the last line of a run that a crash ended
        file.write(cut + "".join(json.dumps(row) + "\n" for row in rows).encode())


def read_predictions(path: Path, decode: Callable[[list[int]], str]) -> list[Prediction]:
    """Predictions of a file, scored by our metric; answers are text, or `answer_ids` that `decode` reads.

    Raises:
        Malformed: It holds something else.
    """
    try:
        given = [json.loads(line) for line in read_text(path).split("\n") if line.strip()]
        texts = [decode(one.pop("answer_ids")) if "answer_ids" in one else one.get("prediction") for one in given]
        rows = [Prediction.model_validate(one | {"prediction": text}) for one, text in zip(given, texts, strict=True)]
    except (AttributeError, TypeError, ValueError) as error:
        raise Malformed(f"{path.name} holds no predictions: {str(error).splitlines()[0]}.", field="score") from error
    return [one.model_copy(update={"score": score(one.task, one.prediction, one.references)}) for one in rows]
