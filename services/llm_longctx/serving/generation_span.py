"""Generation span: one per chat or completion, by OpenTelemetry's conventions for generative AI, and what is ours.

No text of prompts and answers is recorded.
"""

import time
from collections.abc import Sequence
from typing import Any

from fovea.api.text import GenerationOptions, Usage
from services.llm_longctx.engine import GenerationRequest
from services.llm_longctx.serving.answer_text import OutputChunk
from shared import telemetry


class GenerationSpan:
    """The span of one request to a language model, from its tokenization to its last token.

    Attributes:
        span: The span; who made it ends it.
    """

    def __init__(self, operation: str, model: str, options: GenerationOptions) -> None:
        """Begin it; `operation` is `chat` or `text_completion`."""
        self._started = time.perf_counter()
        self._first_s: float | None = None
        self._reasons: list[str] = []
        self.span = telemetry.span(f"{operation} {model}", kind="internal")
        if self.span.is_recording:
            self.span.set_attributes(
                {"gen_ai.operation.name": operation, "gen_ai.request.model": model, **_describe(options)}
            )

    def note(self, piece: OutputChunk) -> None:
        """Note when the first text came, and why answers ended."""
        if self._first_s is None and (piece.text or piece.calls):
            self._first_s = time.perf_counter() - self._started
        if piece.reason is not None:
            self._reasons.append(piece.reason)

    def describe_answer(self, answer_id: str, usage: Usage, requests: Sequence[GenerationRequest]) -> None:
        """Say what the answer cost, and what was held of the method that it was asked for."""
        if not self.span.is_recording:
            return
        cost = usage.longctx
        attributes = {
            "gen_ai.response.id": answer_id,
            "gen_ai.response.finish_reasons": self._reasons,
            "gen_ai.response.time_to_first_chunk": self._first_s,
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
        }
        if cost is not None:
            attributes |= {
                "gen_ai.usage.cache_read.input_tokens": cost.cached_tokens,
                "fovea.method": cost.method,
                "fovea.kv_bytes": cost.kv_bytes,
                "fovea.kv_bytes_dense": cost.kv_bytes_dense,
                "fovea.density": cost.prefill_density,
                "fovea.preempted": cost.preempted,
                "fovea.fallback": cost.fallback,
                "fovea.fidelity.verdict": _judge(requests[0], cost.method),
            }
        self.span.set_attributes(attributes)


def _describe(options: GenerationOptions) -> dict[str, Any]:
    """The request's options, by the conventions' names; absent ones are left out."""
    most = getattr(options, "max_completion_tokens", None) or getattr(options, "max_tokens", None)
    return {
        "gen_ai.provider.name": "fovea",
        "gen_ai.request.max_tokens": most,
        "gen_ai.request.temperature": options.temperature,
        "gen_ai.request.top_p": options.top_p,
        "gen_ai.request.top_k": options.top_k,
        "gen_ai.request.seed": options.seed,
        "gen_ai.request.choice.count": options.n if options.n > 1 else None,
        "gen_ai.request.stream": options.stream,
        "gen_ai.conversation.id": options.session_id,
    }


def _judge(request: GenerationRequest, method: str) -> str | None:
    """Whether the answer is dense attention's: `exact`, `held_back` where dense served in place, or `trusted`."""
    if request.policy is None:
        return None
    if request.fallback_from is not None:
        return "held_back"
    return "exact" if method == "dense" else "trusted"
