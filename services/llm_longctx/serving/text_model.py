"""A language model as a Servable: chat and text completion, tokenize and detokenize on the same weights.

An adapter answers for the model, whatever family it is of. Knows the protocol's requests; knows no HTTP and no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from services.llm_longctx.serving.adapters.base import TextModelAdapter
from services.llm_longctx.serving.chat import ChatProtocol
from services.llm_longctx.serving.completions import TextCompletionProtocol
from services.llm_longctx.serving.protocol import AnswerT, ChunkT, CompletionProtocol, RequestT
from services.llm_longctx.serving.request_state import PreparedRequest, RequestState, SessionTransaction
from shared.api.text import (
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    CompletionRequest,
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
)
from shared.errors import FoveaError, InvalidOption
from shared.registry import CallContext, Servable


class TextModel(Servable[ChatRequest, ChatCompletion]):
    """Serves a language model through its adapter; subclasses load it.

    Class attributes:
        takes_sessions: Whether requests may name a session.
        takes_documents: Whether requests may name a document.
    """

    In = ChatRequest
    Out = ChatCompletion
    mode = "stream"

    adapter: TextModelAdapter
    takes_sessions: ClassVar[bool] = False
    takes_documents: ClassVar[bool] = False

    def predict(self, batch: Sequence[ChatRequest], run: CallContext) -> list[ChatCompletion | FoveaError]:
        chat, begun = ChatProtocol(), list[Iterator[ChatChunk] | FoveaError]()
        for request in batch:
            try:
                begun.append(chat.stream(self.adapter, request, run))
            except FoveaError as error:
                begun.append(error)
        return [one if isinstance(one, FoveaError) else chat.gather(one) for one in begun]

    def stream(self, request: BaseModel, run: CallContext) -> Iterator[BaseModel]:
        body, state = (request.request, request.state) if isinstance(request, PreparedRequest) else (request, None)
        if isinstance(body, ChatRequest):
            return self._stream(ChatProtocol(), body, run, state)
        if isinstance(body, CompletionRequest):
            return self._stream(TextCompletionProtocol(), body, run, state)
        message = f"{type(body).__name__} is no request of a language model"
        raise TypeError(message)

    def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """Tokens of a text or of a conversation under the template.

        Raises:
            InvalidOption: Neither or both were given, or the template refuses.
            ContextLengthExceeded: The text is longer than any prompt may be.
        """
        if (request.prompt is None) == (request.messages is None):
            detail = "Give either prompt or messages."
            raise InvalidOption(detail, field="prompt")
        if request.messages is not None:
            text = self.adapter.render_chat(request.messages, add_generation_prompt=request.add_generation_prompt)
            ids = self.adapter.tokenize(text, "messages", special=False)
        else:
            text = request.prompt or ""
            ids = self.adapter.tokenize(text, "prompt", special=request.add_special_tokens)
        texts = [self.adapter.tokenizer.token_text(token) for token in ids] if request.return_token_strs else None
        return Tokenized(tokens=ids, count=len(ids), prompt=text, max_model_len=self.adapter.context, token_strs=texts)

    def detokenize(self, request: DetokenizeRequest) -> Detokenized:
        """Text of tokens, special ones as their names.

        Raises:
            InvalidOption: An id that the model does not know.
        """
        if any(token >= self.adapter.vocab for token in request.tokens):
            detail = f"tokens holds {max(request.tokens)}; this model's ids are below {self.adapter.vocab}."
            raise InvalidOption(detail, field="tokens")
        return Detokenized(prompt=self.adapter.tokenizer.decode(request.tokens))

    def details(self) -> dict[str, Any]:
        return {"remembers": self.takes_sessions, "cites": self.takes_documents}

    def close(self) -> None:
        self.adapter.scheduler.close()

    def _stream(
        self,
        protocol: CompletionProtocol[RequestT, ChunkT, AnswerT],
        body: RequestT,
        run: CallContext,
        state: RequestState | None,
    ) -> Iterator[ChunkT]:
        chunks = protocol.stream(self.adapter.of_tenant(run.tenant), body, run, state)
        if isinstance(state, SessionTransaction):
            chunks = _commit_before_end(chunks, protocol, state)
        wants_usage = not body.stream or (body.stream_options is not None and body.stream_options.include_usage)
        return chunks if wants_usage else (chunk for chunk in chunks if chunk.choices)


def _commit_before_end(
    chunks: Iterator[ChunkT], protocol: CompletionProtocol[RequestT, ChunkT, AnswerT], transaction: SessionTransaction
) -> Iterator[ChunkT]:
    """The same chunks; the new state is stored before those that report it are let through, so that they are true."""
    passed, held_back = list[ChunkT](), list[ChunkT]()
    for chunk in chunks:
        passed.append(chunk)
        if chunk.longctx is not None:
            held_back.append(chunk)
        else:
            yield chunk
    transaction.commit(transaction, protocol.gather(passed).model_dump_json())
    yield from held_back
