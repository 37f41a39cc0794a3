"""Samples of the RULER form: text, tokens under a chat template, and identity. Knows no task and no model."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from shared.lm.niah_prompts import Codec

_MARK = "<<<context ends here>>>"


@dataclass(frozen=True, slots=True)
class RulerSample:
    """One question about one context, which ends in a line break; samples of one group share it.

    The model goes on from `answer_prefix`, and its answer should contain the references. `length` is the most tokens of
    prompt and answer together, `tokens` those of the prompt, `depths` the percent of the haystack before each needle.
    """

    task: str
    index: int
    group: int
    context: str
    question: str
    answer_prefix: str
    references: tuple[str, ...]
    max_new_tokens: int
    length: int
    tokens: int
    seed: int
    depths: tuple[float, ...] = ()

    def facts(self) -> dict[str, Any]:
        """What tells an answer's sample, and what scores it."""
        named = {name: getattr(self, name) for name in ("digest", "task", "length", "index", "group")}
        return named | {"references": list(self.references)}

    @property
    def digest(self) -> str:
        """SHA-256 of its text and references."""
        facts = [self.context, self.question, self.answer_prefix, list(self.references)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RenderedSample:
    """Tokens of a sample: those that a method may compress, and those that come behind."""

    context_ids: tuple[int, ...]
    question_ids: tuple[int, ...]


def render(codec: Codec, sample: RulerSample, *, chat: bool | None = None) -> RenderedSample:
    """Tokens under the chat template, where there is one, or plainly; `chat` decides otherwise.

    The answer's prefix stands in the assistant's turn. Both protocols use these tokens, and differ only in what the
    method saw when it compressed.
    """
    return render_text(codec, sample.context, sample.question, sample.answer_prefix, chat=chat)


def render_text(codec: Codec, context: str, question: str, prefix: str, *, chat: bool | None = None) -> RenderedSample:
    """As `render`, of texts."""
    if codec.chat_template is not None if chat is None else chat:
        # An answer has no room for thoughts, and begins with its prefix.
        has_switch = "enable_thinking" in (codec.chat_template or "")
        more: dict[str, Any] = {"names": {"enable_thinking": False}} if has_switch else {}
        whole = codec.chat([{"role": "user", "content": context + _MARK + question}], **more)
        head, _, tail = whole.partition(_MARK)
        context_ids = codec.encode(head, special=False)
    else:
        context_ids, tail = codec.encode(context), f"{question} "
    return RenderedSample(tuple(context_ids), tuple(codec.encode(tail + prefix, special=False)))
