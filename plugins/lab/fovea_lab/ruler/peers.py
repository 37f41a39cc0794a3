"""Predictions of peers on our samples: read from JSONL and scored here."""

import json
from collections.abc import Callable
from pathlib import Path

from fovea.errors import Malformed
from fovea_lab.ruler.report import Prediction
from fovea_lab.ruler.scoring import score


def read_predictions(path: Path, decode: Callable[[list[int]], str]) -> list[Prediction]:
    """Predictions of a file, scored by our metric; answers are text, or `answer_ids` that `decode` reads.

    Raises:
        Malformed: It holds something else.
    """
    try:
        given = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
        texts = [decode(one.pop("answer_ids")) if "answer_ids" in one else one.get("prediction") for one in given]
        rows = [Prediction.model_validate(one | {"prediction": text}) for one, text in zip(given, texts, strict=True)]
    except ValueError as error:
        raise Malformed(f"{path.name} holds no predictions: {str(error).splitlines()[0]}.", field="score") from error
    return [one.model_copy(update={"score": score(one.task, one.prediction, one.references)}) for one in rows]
