"""First labels: a task's picture goes to a served model, and its answer comes back as a prediction of Label Studio."""

import base64
from collections.abc import Mapping
from typing import Any

import httpx2
from pydantic import BaseModel, ValidationError

from fovea.api.boxes import DetectOut
from fovea.api.classes import ClassifyOut
from fovea.api.mask import SegmentOut
from fovea.api.model import ModelEntry, ModelList
from fovea.error_responses import parse_error
from fovea.errors import InvalidOption, Malformed, NotFound, NotReady
from fovea_labelstudio.label_config import ControlTag
from fovea_labelstudio.label_studio import LabelStudio
from fovea_labelstudio.regions import boxes_to_regions, choices_to_regions, mask_to_regions

Prediction = dict[str, Any]


class Predictor:
    """Models behind a gateway, the best first: the first that is served answers."""

    def __init__(self, gateway: httpx2.AsyncClient, label_studio: LabelStudio, models: list[str]) -> None:
        self._gateway, self._label_studio, self._models = gateway, label_studio, models

    async def find_model(self) -> ModelEntry:
        """The model that answers.

        Raises:
            NotFound: None of them is served.
            NotReady: The gateway can't be reached.
        """
        answer = await self._send("GET", "/v1/models")
        served = {entry.id: entry for entry in ModelList.model_validate_json(answer.content).data}
        for name in self._models:
            if name in served:
                return served[name]
        raise NotFound(f"The gateway serves no {self._models[-1]!r}.", hint="GET /v1/models lists what it serves.")

    async def predict(self, task: Mapping[str, Any], control: ControlTag, model: ModelEntry) -> Prediction:
        """The prediction for a task.

        Raises:
            InvalidOption: The task has no picture, or one that lies elsewhere.
            FoveaError: The gateway or Label Studio refused.
        """
        answer = await self._ask(await self._picture(task, control), model)
        regions = _to_regions(answer, control)
        return {"result": regions, "score": _score(answer, regions), "model_version": version_of(model)}

    async def _picture(self, task: Mapping[str, Any], control: ControlTag) -> str | bytes:
        """The bytes of a task's picture; an address elsewhere stays one, which the gateway may fetch or refuse."""
        data = task.get("data")
        address = data.get(control.field) if isinstance(data, dict) else None
        if not isinstance(address, str) or not address:
            raise InvalidOption(f"The task has no picture under {control.field!r}.", field="tasks")
        if self._label_studio.owns(address):
            return await self._label_studio.fetch_picture(address)
        if address.startswith(("http://", "https://")):
            return address
        hint = "Give pictures of storages as files of Label Studio, or as https addresses."
        raise InvalidOption("The task's picture lies where nobody here can read it.", hint=hint, field="tasks")

    async def _ask(self, picture: str | bytes, model: ModelEntry) -> BaseModel:
        kinds: dict[str, type[BaseModel]] = {"detect": DetectOut, "segment": SegmentOut, "classify": ClassifyOut}
        image = picture if isinstance(picture, str) else base64.b64encode(picture).decode()
        answer = await self._send("POST", f"/v1/{model.task}", json={"model": model.id, "image": image})
        try:
            return kinds[model.task].model_validate_json(answer.content)
        except ValidationError as error:
            raise NotReady(f"The gateway's answer to {model.task!r} can't be read.") from error

    async def _send(self, method: str, path: str, json: Any = None) -> httpx2.Response:
        try:
            answer = await self._gateway.request(method, path, json=json)
        except httpx2.HTTPError as error:
            detail = f"The gateway can't be reached ({type(error).__name__})."
            raise NotReady(detail, hint="Start it: fovea up.") from error
        if answer.status_code != httpx2.codes.OK:
            raise parse_error(answer)
        return answer


def version_of(model: ModelEntry) -> str:
    """The version of a prediction in Label Studio; a new one makes it ask again."""
    return f"{model.id} {(model.model_extra or {}).get('version', '')}".strip()


def _to_regions(answer: BaseModel, control: ControlTag) -> list[dict[str, Any]]:
    match answer:
        case DetectOut():
            return boxes_to_regions(answer, control)
        case SegmentOut():
            return mask_to_regions(answer, control)
        case ClassifyOut():
            return choices_to_regions(answer, control)
    raise Malformed("The answer is of no kind that regions are made of.")


def _score(answer: BaseModel, regions: list[dict[str, Any]]) -> float | None:
    """Mean over regions, by which people sort tasks; of an empty mask how sure that is; else none."""
    if regions:
        return round(sum(float(region["score"]) for region in regions) / len(regions), 5)
    return round(1 - answer.max_probability, 5) if isinstance(answer, SegmentOut) else None
