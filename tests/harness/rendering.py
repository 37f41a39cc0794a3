"""Answers of vision models in a form other than JSON, as the platform asks for them."""

from typing import Any

from pydantic import BaseModel

from shared.registry import CallContext, Servable


def predict_as(model: Servable[Any, Any], request: BaseModel, media: str) -> tuple[Any, bytes | None]:
    run = CallContext()
    run.media = media
    (answer,) = model.predict([request], run)
    return answer, model.render(request, answer, media)
