"""The decode loop outside of the scheduler: sequences that are read in chunks and decode together, step by step.

Every step ends in a `yield`, so that a scheduler can serve requests in between. Knows states and their next tokens;
what happens with logits is up to the sequences.
"""

from collections.abc import Generator, Sequence
from typing import Protocol

from torch import Tensor

from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.model_runner import ModelRunner
from services.llm_longctx.engine.prefix_cache import PrefixCache


class Decoding(Protocol):
    """A sequence that decodes."""

    @property
    def state(self) -> PagedState:
        """What it holds."""
        ...

    def next_token(self) -> int | None:
        """Return the token to feed next, or None if the sequence has ended."""
        ...

    def take(self, logits: Tensor) -> None:
        """Take the logits [V] behind the token that was fed."""
        ...


def read_prompt(
    runner: ModelRunner,
    state: PagedState,
    ids: Sequence[int],
    *,
    start: int = 0,
    keep: int = 1,
    prefixes: PrefixCache | None = None,
) -> Generator[None, None, Tensor]:
    """Read a prompt in the chunks that its policy asks for; return the logits [n,V] of its last tokens.

    Args:
        runner: Runs the decoder.
        state: The sequence; its pages are reserved by the caller.
        ids: The whole prompt.
        start: Tokens that are known already.
        keep: Last tokens whose logits are returned: none are if the whole prompt is known.
        prefixes: Known prefixes, which give way where memory runs out.
    """
    logits = runner.model.output_matrix.new_zeros(0, runner.model.config.vocab)
    while start < len(ids):
        end = start + state.policy.next_chunk(start, len(ids))
        needed = state.cache.pages_needed(end - start)
        if prefixes is not None:
            prefixes.make_room(needed)
        state.peak_bytes = max(state.peak_bytes, state.cache.nbytes + needed * state.cache.pool.page_bytes)
        logits = runner.prefill(state, ids[start:end], last=(last := end == len(ids)), keep=keep if last else 0)
        start = end
        yield
    return logits


def decode(
    runner: ModelRunner, sequences: Sequence[Decoding], *, prefixes: PrefixCache | None = None
) -> Generator[None, None, None]:
    """Decode sequences together until all have ended; `prefixes` as in `read_prompt`."""
    while fed := [(one, token) for one in sequences if (token := one.next_token()) is not None]:
        if prefixes is not None:
            prefixes.make_room(sum(one.state.cache.pages_needed() for one, _ in fed))
        rows = runner.decode([one.state for one, _ in fed], [token for _, token in fed])
        for (one, _), row in zip(fed, rows, strict=True):
            one.take(row)
        yield
