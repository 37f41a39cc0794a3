"""In which chunks a served prompt is read: on an absolute grid, so that a cached prefix leads to the same shapes.

Knows lengths only.
"""

from __future__ import annotations

from services.llm_longctx.engine.policy import CHUNK
from services.llm_longctx.methods import AttentionMethod

__all__ = ["next_chunk"]


def next_chunk(method: AttentionMethod, read: int, prompt: int, page: int) -> int:
    """Tokens of the next chunk of a prompt of which `read` tokens are read.

    Chunks end on multiples of 512. The last 512 or less are read page by page, where the method does not care: then a
    prompt that comes again, cached up to its last page, is finished by the very operations that it was read with.
    """
    if not method.supports.chunked_prefill:
        return prompt - read
    end = min((read // CHUNK + 1) * CHUNK, prompt)
    if end == prompt and method.chunk_invariant:
        end = min((read // page + 1) * page, prompt)
    return end - read
