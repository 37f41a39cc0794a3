"""Text corpus for evaluations: the help topics that ship with Python, in an order drawn by a seed.

Freely licensed, and on every machine. Knows text; knows no tokenizer and no model.
"""

import random
from functools import cache

from fovea.errors import NotFound


def load_library_prose(characters: int, seed: int = 0) -> str:
    """At least so many characters of Python's help topics, or all there are.

    Raises:
        NotFound: This Python came without them.
    """
    order = list(_topics())
    random.Random(seed).shuffle(order)
    found, size = [], 0
    for text in order:
        found.append(text)
        size += len(text) + 2
        if size >= characters:
            break
    return "\n\n".join(found)


@cache
def _topics() -> tuple[str, ...]:
    try:
        from pydoc_data.topics import topics  # noqa: PLC0415  # 0.7 MB, and only evaluations need it
    except ImportError as error:
        detail = "This Python came without its help topics (pydoc_data)."
        raise NotFound(detail, hint="Give a text, or ask for corpus=generated.", field="corpus") from error
    return tuple(text.strip() for _, text in sorted(topics.items()))
