"""Embeddings: texts to vectors, by a sentence embedder or by averaging a decoder's last hidden states.

Both read one request in the same form. Knows the protocol's request; knows no HTTP.
"""

import base64
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fovea.api.embeddings import MAX_INPUTS, Embedding, Embeddings, EmbeddingsRequest, EmbeddingUsage
from fovea.api.request_fields import check_fields
from fovea.errors import InvalidOption
from services.llm_longctx.api.errors import ContextLengthExceeded
from shared.lm.decoder import Decoder
from shared.lm.tokenizer import Tokenizer


class TokenEmbedder(Protocol):
    """Embeds texts that are tokens.

    Attributes:
        width: Length of its vectors.
        vocab: Token ids are below this.
        max_tokens: Longest text.
        longest: Characters that a token of a text may have at most.
    """

    width: int
    vocab: int
    max_tokens: int
    longest: int

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, uncut."""

    def embed_tokens(self, texts: Sequence[list[int]], check: Callable[[], None]) -> np.ndarray:
        """Vectors of length 1 [n,d] of texts, each cut to `max_tokens`; `check` is called between texts, or some."""

    def cut(self, ids: list[int], size: int) -> list[int]:
        """So many tokens of a text, as the model is used to."""


class DecoderEmbedder(TokenEmbedder):
    """Mean pooling over a decoder's normed last hidden states; one text after the other."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.width, self.vocab, self.max_tokens = model.config.width, model.config.vocab, model.config.positions
        self.longest = tokenizer.longest

    def tokenize(self, text: str) -> list[int]:
        return self._tokenizer.encode(text) or [self._tokenizer.start]

    def cut(self, ids: list[int], size: int) -> list[int]:
        return ids[:size]

    @torch.inference_mode()
    def embed_tokens(self, texts: Sequence[list[int]], check: Callable[[], None]) -> np.ndarray:
        means = []
        for ids in texts:
            check()
            means.append(self._mean_state(self.cut(ids, self.max_tokens)))
        rows: np.ndarray = torch.nn.functional.normalize(torch.stack(means), dim=-1).numpy()
        return rows

    def _mean_state(self, ids: list[int]) -> Tensor:
        states: list[Tensor] = []

        def keep_normed(name: str, _layer: int, x: Tensor) -> Tensor:
            if name == "normed":
                states.append(x)
            return x

        self._model(torch.tensor([ids], device=self._model.output_matrix.device), tap=keep_normed, keep=1)
        return states[0][0].float().mean(0).cpu()


def embed_request(
    model: str, embedder: TokenEmbedder, request: EmbeddingsRequest, check: Callable[[], None]
) -> Embeddings:
    """Answer a request; `check` raises where nobody waits any more.

    Raises InvalidOption: no text or too many, a token that is unknown, more dimensions than there are;
    ContextLengthExceeded: a text is longer than the model reads, and is not to be cut.
    """
    inputs = request.list_inputs()
    warnings = check_fields(request)
    if not 1 <= len(inputs) <= MAX_INPUTS:
        detail = f"input has {len(inputs):,} texts; a request takes 1 to {MAX_INPUTS:,}."
        raise InvalidOption(detail, hint="Send several requests.", field="input")
    if (empty := next((i for i, one in enumerate(inputs) if not one), None)) is not None:
        raise InvalidOption(f"input[{empty}] is empty.", hint="Leave it out.", field="input")
    if request.dimensions is not None and request.dimensions > embedder.width:
        raise InvalidOption(f"{model} has {embedder.width} dimensions, not {request.dimensions}.", field="dimensions")
    cut = request.truncate_prompt_tokens
    may_cut = request.truncate or cut is not None
    texts = [_tokenize(model, embedder, one, may_cut=may_cut) for one in inputs]
    if cut is not None and cut > 0:
        texts = [embedder.cut(ids, cut) for ids in texts]
    read = sum(min(len(ids), embedder.max_tokens) for ids in texts)
    answer = build_embeddings(model, list(embedder.embed_tokens(texts, check)), read, request)
    return answer.model_copy(update={"warnings": warnings or None})


def _tokenize(model: str, embedder: TokenEmbedder, text: str | list[int], *, may_cut: bool) -> list[int]:
    most = embedder.max_tokens * embedder.longest
    if isinstance(text, str) and len(text) > most:  # before a tokenizer works on it for minutes
        if not may_cut:
            detail = f"A text has {len(text):,} characters; {model} reads {embedder.max_tokens:,} tokens."
            raise ContextLengthExceeded(detail, hint="Cut it, or set truncate.", field="input")
        text = text[:most]
    try:
        ids = embedder.tokenize(text) if isinstance(text, str) else text
    except TypeError as error:  # all that the tokenizers' library says of it
        detail = "A text of input holds half a surrogate pair, which is not a character."
        raise InvalidOption(detail, field="input") from error
    if any(token >= embedder.vocab for token in ids):
        detail = f"input holds token {max(ids)}; the ids of {model} are below {embedder.vocab}."
        raise InvalidOption(detail, hint="Send text.", field="input")
    if len(ids) > embedder.max_tokens and not may_cut:
        detail = f"A text has {len(ids):,} tokens; {model} reads {embedder.max_tokens:,}."
        raise ContextLengthExceeded(detail, hint="Cut it, or set truncate.", field="input")
    return ids


def build_embeddings(model: str, rows: Sequence[np.ndarray], tokens: int, request: EmbeddingsRequest) -> Embeddings:
    """The answer with these vectors [n,d], in the encoding that the request wants."""
    data = []
    for index, row in enumerate(rows):
        kept = row[: request.dimensions] if request.dimensions else row
        kept = (kept / max(float(np.linalg.norm(kept)), 1e-12)).astype("<f4")
        is_text = request.encoding_format == "base64"
        vector = base64.b64encode(kept.tobytes()).decode() if is_text else kept.tolist()
        data.append(Embedding(index=index, embedding=vector))
    return Embeddings(data=data, model=model, usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens))
