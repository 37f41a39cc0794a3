"""Prompt scores: log-probabilities of a prompt's own tokens, reported chunk by chunk to all answers of its request.

A prompt that is read again is not scored again. Knows a request and its logits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from services.llm_longctx.engine.requests.request import GenerationRequest
from services.llm_longctx.engine.requests.sampling import ScoredToken
from services.llm_longctx.engine.sampler import read_logprobs
from shared.lm.host_transfer import to_device, to_host


def count_logits(request: GenerationRequest, begin: int, end: int) -> int | None:
    """Last positions of prompt tokens `begin` … `end`-1 whose logits are needed; None for all."""
    if request.score_prompt and _first_unscored(request, begin) <= end:
        return None
    return int(end == len(request.prompt_ids))


def report_scores(request: GenerationRequest, logits: Tensor, begin: int, end: int) -> None:
    """Report log-probabilities of the prompt by the logits [t,V] of its tokens `begin` … `end`-1, if asked for."""
    if not request.score_prompt:
        return
    first = _first_unscored(request, begin)
    if known := list(request.prompt_ids[first : end + 1]):
        request.num_scored = first + len(known)
        rows = logits[first - 1 - begin :][: len(known)]
        tokens = token_logprobs(rows, known, max(request.top_logprobs or 0, request.top_prompt_logprobs))
        for answer in range(len(request.samplings)):
            request.hooks.on_prompt(answer, tokens)


def token_logprobs(logits: Tensor, chosen: Sequence[int], top: int) -> list[ScoredToken]:
    """Tokens `chosen` [T] with their log-probabilities and the `top` likeliest, from logits [T,V]."""
    rows = to_host(read_logprobs(logits, to_device(list(chosen), logits.device, torch.int64), top)).tolist()
    return [ScoredToken.of(token, words) for token, words in zip(chosen, rows, strict=True)]


def _first_unscored(request: GenerationRequest, begin: int) -> int:
    """The first prompt token that logits from position `begin` on can score and that is to be scored."""
    return max(begin + 1, request.score_from, request.num_scored)
