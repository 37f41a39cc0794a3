"""Answers of vision models in a form other than JSON, as the platform asks for them."""

from typing import Any

from pydantic import BaseModel

from shared.registry import CallContext, Servable


def predict_as(model: Servable[Any, Any], request: BaseModel, media: str) -> tuple[Any, bytes | None]:
    """The answer to one request, and how it is rendered as `media`."""
    run = CallContext()
    run.media = media
    (answer,) = model.predict([request], run)
    return answer, model.render(request, answer, media)
