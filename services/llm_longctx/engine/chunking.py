"""In which chunks a served prompt is read: on an absolute grid, so that a cached prefix leads to the same shapes.

Knows lengths only.
"""

from __future__ import annotations

from services.llm_longctx.engine.method_policy import CHUNK
from services.llm_longctx.methods import AttentionMethod

__all__ = ["next_chunk"]


def next_chunk(method: AttentionMethod, read: int, prompt: int) -> int:
    """Tokens of the next chunk of a prompt of which `read` tokens are read.

    Chunks end on multiples of 512 or with the prompt. What is left behind a cached prefix is therefore one product per
    matrix: read page by page it would take almost twice as long.
    """
    if not method.supports.chunked_prefill:
        return prompt - read
    return min((read // CHUNK + 1) * CHUNK, prompt) - read
