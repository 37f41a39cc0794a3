"""Request options: what is checked before a model is asked, and what they mean for prompts and texts."""

from collections.abc import Sequence
from typing import Any

from fovea.api.request_fields import check_fields
from fovea.api.sampling import SamplingOptions
from fovea.api.text import GenerationOptions
from fovea.errors import InvalidOption
from services.llm_longctx.engine import GenerationRequest
from services.llm_longctx.serving.answer_text import TextOptions

MAX_SCORES = 2**21
"""Log-probabilities of the prompts of one request."""


def build_text_options(options: SamplingOptions, **more: Any) -> TextOptions:
    """How the answers to a request become text; `more` are fields of `TextOptions`."""
    return TextOptions(
        stops=options.stop or (),
        keeps_stop=options.include_stop_str_in_output,
        shows_special=not options.skip_special_tokens,
        min_tokens=options.min_tokens,
        named_ends=frozenset(options.stop_token_ids or ()),
        **more,
    )


def check_options(options: GenerationOptions) -> list[str]:
    """Refuse options that are well formed but not served.

    Returns:
        A sentence for each field that is ignored.

    Raises InvalidOption: A field that is not served, or options that exclude each other.
    """
    warnings = check_fields(options, is_strict=options.strict)
    if (most := options.longest) is not None and options.min_tokens > most:
        detail = f"min_tokens is {options.min_tokens}, and the answer has at most {most} tokens."
        raise InvalidOption(detail, field="min_tokens")
    if options.prompt_logprobs is not None and options.stream:
        raise InvalidOption("prompt_logprobs come with whole answers only.", hint="Leave stream out.", field="stream")
    if options.stream_options is not None and options.stream_options.include_usage and not options.stream:
        detail = "stream_options.include_usage needs stream to be true."
        raise InvalidOption(detail, hint="Whole answers have the usage.", field="stream_options")
    return warnings


def check_scores(requests: Sequence[GenerationRequest]) -> None:
    """Refuse prompts whose log-probabilities are too many for one answer: InvalidOption."""
    scored = [one for one in requests if one.score_prompt]
    top = max((max(one.top_logprobs or 0, one.top_prompt_logprobs) for one in scored), default=0)
    count = (1 + top) * sum(len(one.prompt_ids) * len(one.samplings) for one in scored)
    if count > MAX_SCORES:
        detail = f"The prompts come to {count:,} log-probabilities; an answer has at most {MAX_SCORES:,}."
        raise InvalidOption(detail, hint="Send fewer prompts, or ask for fewer likeliest tokens.", field="prompt")


def truncate_prompt(
    ids: Sequence[int], context: int, max_tokens: int | None, options: GenerationOptions
) -> Sequence[int]:
    """The tokens of a prompt that a request keeps; the same where it keeps all."""
    if (size := options.truncate_prompt_tokens) is None:
        return ids
    if size < 1:
        size = max(context - (max_tokens or 1), 1)
    if len(ids) <= size:
        return ids
    return ids[:size] if options.truncation_side == "right" else ids[-size:]
