"""Errors with a code of their own in OpenAI's API."""

from typing import ClassVar

from fovea.errors import BadInput, NotFound


class ContextLengthExceeded(BadInput):
    """The prompt is longer than the model's context."""

    openai_code: ClassVar[str] = "context_length_exceeded"
    title = "Context length exceeded"


class ModelNotFound(NotFound):
    """No model of that name is served here."""

    openai_code: ClassVar[str] = "model_not_found"
    title = "Model not found"
