"""A language model as a Servable: chat and text completion, tokenize and detokenize on the same weights.

An adapter answers for the model, whatever family it is of. Knows the protocol's requests; knows no HTTP and no weights.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar

from pydantic import BaseModel

from fovea.api.request_fields import check_fields
from fovea.api.text import (
    ChatCompletion,
    ChatRequest,
    CompletionRequest,
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
)
from fovea.errors import FoveaError, InvalidOption
from services.llm_longctx.serving.adapters.base import TextModelAdapter
from services.llm_longctx.serving.chat import ChatProtocol, render_prompt
from services.llm_longctx.serving.completions import TextCompletionProtocol
from shared.registry import CallContext, Servable


class TextModel(Servable[ChatRequest, ChatCompletion]):
    """Serves a language model through its adapter; subclasses load it.

    Class attributes:
        takes: Request fields of plug-ins that the model understands, such as `session_id`.
    """

    In = ChatRequest
    Out = ChatCompletion
    mode = "stream"

    adapter: TextModelAdapter
    takes: ClassVar[frozenset[str]] = frozenset()

    def predict(self, batch: Sequence[ChatRequest], run: CallContext) -> list[ChatCompletion | FoveaError]:
        async def answer_together() -> list[ChatCompletion | FoveaError]:
            return await asyncio.gather(*(self._answer(request, run) for request in batch))

        return asyncio.run(answer_together())

    def stream(self, request: BaseModel, run: CallContext) -> AsyncGenerator[BaseModel, None]:
        adapter = self.adapter.of_tenant(run.tenant, getattr(request, "model", None))
        if isinstance(request, ChatRequest):
            return ChatProtocol().stream(adapter, request, run)
        if isinstance(request, CompletionRequest):
            return TextCompletionProtocol().stream(adapter, request, run)
        raise TypeError(f"{type(request).__name__} is not a request of a language model")

    def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """Tokens of a text or of a conversation under the template.

        Raises InvalidOption: neither or both were given, a field that is not served, or the template refuses;
        ContextLengthExceeded: the text is longer than any prompt may be.
        """
        warnings, tokenizer = check_fields(request), self.adapter.tokenizer
        if (request.prompt is None) == (request.messages is None):
            raise InvalidOption("Give either prompt or messages.", field="prompt")
        if request.messages is not None:
            same = ChatRequest.model_fields.keys() & TokenizeRequest.model_fields.keys() & request.model_fields_set
            text, *_ = render_prompt(self.adapter, ChatRequest(**{name: getattr(request, name) for name in same}))
            ids = self.adapter.tokenize(text, "messages", special=bool(request.add_special_tokens))
        else:
            text = request.prompt or ""
            ids = self.adapter.tokenize(text, "prompt", special=request.add_special_tokens is not False)
        return Tokenized(
            tokens=ids,
            count=len(ids),
            prompt=tokenizer.show(text),
            max_model_len=self.adapter.context,
            token_strs=[tokenizer.token_text(token) for token in ids] if request.return_token_strs else None,
            warnings=warnings or None,
        )

    def detokenize(self, request: DetokenizeRequest) -> Detokenized:
        """Text of tokens, special ones as their names. Raises InvalidOption: An id that the model does not know."""
        warnings = check_fields(request)
        if any(token >= self.adapter.vocab for token in request.tokens):
            detail = f"tokens holds {max(request.tokens)}; this model's ids are below {self.adapter.vocab}."
            raise InvalidOption(detail, field="tokens")
        return Detokenized(prompt=self.adapter.tokenizer.decode(request.tokens), warnings=warnings or None)

    def close(self) -> None:
        self.adapter.scheduler.close()

    async def _answer(self, request: ChatRequest, run: CallContext) -> ChatCompletion | FoveaError:
        chat, whole = ChatProtocol(), request.model_copy(update={"stream": False})
        try:
            adapter = self.adapter.of_tenant(run.tenant, request.model)
            return chat.gather([chunk async for chunk in chat.stream(adapter, whole, run)])
        except FoveaError as error:
            return error
