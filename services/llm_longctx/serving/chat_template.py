"""Chat templates of requests: which one renders a conversation, with which names, and where the prompt ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fovea.api.text import ChatRequest
from fovea.errors import InvalidOption

END_MARK = "\ufdd1"
"""Behind the message that is gone on with; a code point that no text has as a character."""

_OURS = frozenset({"messages", "tools", "add_generation_prompt"})


@dataclass(frozen=True, slots=True)
class TemplateOptions:
    """How a conversation becomes a prompt.

    Attributes:
        source: Jinja source in place of the model's own.
        names: More names for the template.
        add_generation_prompt: Whether the prompt ends where an answer begins.
        is_continued: Whether it ends inside the last message instead, which the answer goes on with.
    """

    source: str | None = None
    names: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    is_continued: bool = False


def read_template_options(request: ChatRequest, own: str | None, *, may_bring: bool) -> TemplateOptions:
    """A request's options of its template.

    Args:
        request: The chat.
        own: The model's template.
        may_bring: Whether requests may bring a template.

    Raises InvalidOption: They may not, names of ours, a thinking mode that the template does not have, or two ends.
    """
    if request.chat_template is not None and not may_bring:
        hint = "Set FOVEA_LLM_REQUEST_TEMPLATES=true where you trust your callers."
        raise InvalidOption("chat_template is not taken from requests.", hint=hint, field="chat_template")
    names = request.chat_template_kwargs or {}
    if reserved := sorted(_OURS & names.keys()):
        detail = f"chat_template_kwargs holds {reserved[0]}, which is a field of its own."
        raise InvalidOption(detail, field="chat_template_kwargs")
    if request.continue_final_message and request.add_generation_prompt:
        detail = "continue_final_message and add_generation_prompt exclude each other."
        raise InvalidOption(detail, field="continue_final_message")
    source = request.chat_template or own or ""
    return TemplateOptions(
        request.chat_template,
        {**_read_effort(request.reasoning_effort, source), **names},
        add_generation_prompt=request.add_generation_prompt is not False and not request.continue_final_message,
        is_continued=request.continue_final_message,
    )


def cut_at_mark(text: str) -> str:
    """A rendered prompt up to the end of the message that is gone on with.

    Raises InvalidOption: The template left the message out.
    """
    before, mark, _ = text.rpartition(END_MARK)
    if not mark:
        detail = "The model's chat template leaves the last message out, so that nothing can go on with it."
        raise InvalidOption(detail, field="continue_final_message")
    return before


def _read_effort(effort: str | None, template: str) -> dict[str, Any]:
    if effort is None or (effort == "none" and "</think>" not in template):
        return {}
    if "reasoning_effort" in template:
        return {"reasoning_effort": effort}
    if "enable_thinking" in template:
        return {"enable_thinking": effort != "none"}
    detail = "reasoning_effort is not served by this model: its chat template has no switch for it."
    raise InvalidOption(detail, hint="Leave it out.", field="reasoning_effort")
