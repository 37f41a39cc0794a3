"""Comparison of attention methods on one request: an answer by each, and the distance of each from the first.

Each method reads the first answer again, token by token, and its next-token distributions are compared with those that
the first answer was drawn from. Knows requests and logits; knows nothing about the protocols' forms.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fovea.api.longctx import ComparedAnswer, LongctxOptions
from fovea.api.text import CompletionRequest, GenerationOptions
from fovea.errors import FoveaError, InvalidOption
from services.llm_longctx.engine import FinishReason, GenerationRequest, Grammar, RequestHooks, ScoredToken
from services.llm_longctx.serving.adapters.base import TextModelAdapter
from services.llm_longctx.serving.adapters.decoder import DecoderAdapter
from services.llm_longctx.serving.request_extension import RequestExtension
from shared.lm.host_transfer import to_host
from shared.registry import CallContext

MAX_NUMBERS = 2**24
"""Log-probabilities of the first answer that are held: 64 MiB, 341 tokens of SmolLM2. Later tokens are not compared."""


@dataclass(slots=True)
class _Recorded(RequestHooks):
    """The first answer: log-probabilities [V] before each of its tokens, and the tokens."""

    most: int
    logprobs: list[Tensor] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def on_logits(self, answer: int, logits: Tensor) -> None:
        if len(self.logprobs) < self.most:
            self.logprobs.append(to_host(logits.float().log_softmax(-1)))

    def on_token(self, answer: int, token: ScoredToken) -> bool:
        if len(self.tokens) < self.most:
            self.tokens.append(token.id)
        return False

    def on_stop_token(self, answer: int, token: ScoredToken) -> None:
        self.on_token(answer, token)


class MethodComparison(RequestExtension):
    """Comparison that one request asks for: each method answers, and the others read the first answer."""

    def __init__(self, adapter: TextModelAdapter, request: GenerationOptions, run: CallContext) -> None:
        if not isinstance(adapter, DecoderAdapter):
            detail = f"The model {adapter.name!r} has one way to read: it can't compare methods."
            raise InvalidOption(detail, hint="Decoders with pages can, such as smollm2-135m-instruct.", field="compare")
        prompt = request.prompt if isinstance(request, CompletionRequest) else ""
        many = isinstance(prompt, list) and not (prompt and isinstance(prompt[0], int))
        if request.n != 1 or many or run.state is not None or request.longctx is not None:
            detail = "compare takes one prompt, n = 1, no longctx beside it, and no session or document."
            raise InvalidOption(detail, field="compare")
        self._adapter = adapter
        self.recorder = self._first = _Recorded(max(MAX_NUMBERS // adapter.vocab, 1))

    def vary(self, request: Any) -> list[Any]:
        asked = [LongctxOptions(method=one) if isinstance(one, str) else one for one in request.compare]
        return [request.model_copy(update={"longctx": one}) for one in asked]

    async def finish(self, requests: Sequence[GenerationRequest]) -> dict[str, Any]:
        first, *others = requests
        replays = [_Replay(request, self._first) for request in others]
        try:
            for one in replays:
                self._adapter.scheduler.add_request(one.request)
            await asyncio.gather(*(one.ended for one in replays))
        finally:
            for one in replays:
                if not one.ended.done():
                    self._adapter.scheduler.abort(one.request)
        found = [ComparedAnswer(index=0, longctx=self._adapter.usage([first]))]
        for i, (request, one) in enumerate(zip(others, replays, strict=True), 1):
            mean, agreement = ((sum(each) / len(each) if each else None) for each in (one.kl, one.agrees))
            usage = self._adapter.usage([request])
            found.append(ComparedAnswer(index=i, longctx=usage, kl=one.kl, mean_kl=mean, agreement=agreement))
        return {"comparison": found}


class _Replay(RequestHooks):
    """The first answer, read by another method, whose distance from it is measured per token."""

    def __init__(self, asked: GenerationRequest, first: _Recorded) -> None:
        self.kl: list[float] = []
        self.agrees: list[bool] = []
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._first = first
        taps = None if asked.taps is None or not asked.taps.edits else replace(asked.taps, captures=())
        self.request = GenerationRequest(
            asked.prompt_ids,
            max_tokens=len(first.tokens),
            policy=asked.policy,
            boundaries=asked.boundaries,
            priority=asked.priority,
            run=asked.run,
            taps=taps,
            adapter=asked.adapter,
            hooks=self,
        )

    def open_grammar(self, answer: int) -> Grammar | None:
        return _Forced(self._first.tokens, len(self._first.logprobs[0])) if self._first.tokens else None

    def on_logits(self, answer: int, logits: Tensor) -> None:
        p, q = self._first.logprobs[len(self.kl)], to_host(logits.float().log_softmax(-1))
        self.kl.append(max(float((p.exp() * (p - q)).sum()), 0.0))
        self.agrees.append(bool(p.argmax() == q.argmax()))

    def on_finish(self, answer: int, reason: FinishReason | FoveaError, produced: int) -> None:
        self._loop.call_soon_threadsafe(self._settle, reason)

    def _settle(self, reason: FinishReason | FoveaError) -> None:
        if self.ended.done():
            return
        if isinstance(reason, FoveaError):
            self.ended.set_exception(reason)
        else:
            self.ended.set_result(None)


class _Forced:
    """A grammar of one answer."""

    is_finished = False

    def __init__(self, tokens: Sequence[int], vocab: int) -> None:
        self._tokens, self._vocab, self._next = tokens, vocab, 0

    def mask(self) -> Tensor:
        allowed = torch.zeros(self._vocab, dtype=torch.bool, device="cpu")
        allowed[self._tokens[self._next]] = True
        return allowed

    def advance(self, token: int) -> None:
        self._next += 1
