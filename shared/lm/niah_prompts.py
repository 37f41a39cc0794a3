"""Retrieval prompts: needle in a haystack, and key-value lookup in JSON, as pure functions of a seed.

A prompt carries the answer and its span in the context. Knows text and token ids; knows no model and no scoring.
"""

import json
import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fovea.errors import InvalidOption

QUESTION_TOKENS = 200
"""Tokens of a prompt that are reserved for the question and the answer."""


class Codec(Protocol):
    """Interface of a tokenizer; `shared.lm.tokenizer.Tokenizer` is one."""

    chat_template: str | None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text."""

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """Return the text of ids."""

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt of a conversation."""


@dataclass(frozen=True, slots=True)
class Needle:
    """A sentence to hide, a question that only it answers, and its words that are the answer."""

    sentence: str
    question: str
    answer: str


NEEDLES = (
    Needle(
        "The best thing to do in Amberfield is to rent a blue rowing boat and eat plum cake by the old mill.",
        "What is the best thing to do in Amberfield?",
        "rent a blue rowing boat and eat plum cake by the old mill",
    ),
    Needle(
        "The secret that Captain Orla kept for nine years is that the silver compass points to the lighthouse cellar.",
        "What is the secret that Captain Orla kept for nine years?",
        "the silver compass points to the lighthouse cellar",
    ),
    Needle(
        "Every winter the glassblowers of Tarn melt a single green bottle and pour it into the shape of a heron.",
        "What do the glassblowers of Tarn do every winter?",
        "melt a single green bottle and pour it into the shape of a heron",
    ),
)
"""Three needles whose answers nobody can know without having read them."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question with its context.

    Attributes:
        text: Input of the model, chat template included.
        user: A person's message: the content of the one user message.
        ids: Tokens of `text`.
        answer: The right answer, as it would be generated.
        answer_ids: Its tokens.
        span: Where the answer stands in `ids`, [start, end), or None where it was not found.
    """

    text: str
    user: str
    ids: list[int]
    answer: str
    answer_ids: list[int]
    span: tuple[int, int] | None


def even_depths(steps: int = 10) -> list[int]:
    """Return even steps of depth, 0 % … 100 %."""
    return [round(100 * i / max(steps - 1, 1)) for i in range(steps)]


def build_needle_prompt(
    codec: Codec,
    what: Needle,
    length: int,
    depth: float,
    *,
    corpus: str | None = None,
    chat: bool | None = None,
    seed: int = 0,
) -> Prompt:
    """Build the prompt of a needle at `depth` percent of a haystack of about `length` tokens, with its question.

    It is hidden in `corpus`, or in prose of the seed; `chat` is whether the chat template is used, by default where
    there is one.
    """
    text = build_needle_context(codec, what, length, depth, corpus=corpus, seed=seed)
    user = f"{text}\n\nBased on the content of the book, Question: {what.question}\nAnswer:"
    return _prompt(codec, user, what.answer, chat=chat)


def build_needle_context(
    codec: Codec, what: Needle, length: int, depth: float, *, corpus: str | None = None, seed: int = 0
) -> str:
    """Build the haystack with the needle in it; see `build_needle_prompt`. `InvalidOption` if `corpus` is too short."""
    needle = codec.encode(f" {what.sentence}", special=False)
    room = max(length - QUESTION_TOKENS - len(needle), 1)
    hay = codec.encode(corpus or build_haystack(room * 6, seed), special=False)[:room]
    if len(hay) < room:
        detail = f"The haystack has {len(hay):,} tokens; a prompt of {length:,} needs {room:,}."
        raise InvalidOption(detail, hint="Give a longer text or shorter lengths.", field="lengths")
    position = len(hay) if depth >= 100 else int(len(hay) * depth / 100)
    while 0 < position < len(hay) and not codec.decode(hay[position - 1 : position]).rstrip().endswith("."):
        position -= 1
    return codec.decode([*hay[:position], *needle, *hay[position:]]).strip()


def build_key_value_prompt(
    codec: Codec,
    *,
    pairs: int = 10,
    seed: int = 0,
    shots: int = 3,
    key_chars: int = 32,
    value_words: int = 8,
    chat: bool | None = None,
) -> Prompt:
    """Build a JSON object of random keys, solved examples on it, and one more key to look up (AttentionInfluence).

    It has at least `shots` + 1 pairs of a key of `key_chars` letters and digits and a value of `value_words` words, or
    of eight random letters where that is 0; `chat` as in `build_needle_prompt`.
    """
    rng = random.Random(seed)
    keys = [_key(rng, key_chars) for _ in range(max(pairs, shots + 1))]
    table = {key: _sentence(rng, value_words) for key in keys}
    sampled = rng.sample(keys, shots + 1)
    solved = "".join(f"Key: {key}\nValue: {table[key]}\n" for key in sampled[:-1])
    task, key = "Extract the value for the key. Output only the value.", sampled[-1]
    user = f"{task}\n{json.dumps(table)}\n{solved}Key: {key}\nValue:"
    return _prompt(codec, user, table[key], chat=chat)


def build_haystack(characters: int, seed: int = 0) -> str:
    """Build plain prose of at least so many characters from the seed."""
    rng, sentences, size = random.Random(seed), [], 0
    while size < characters:
        sentences.append(_prose(rng))
        size += len(sentences[-1]) + 1
    return " ".join(sentences)


def needle_span(
    prompt_ids: Sequence[int], needle_ids: Sequence[int], *, threshold: float = 0.9
) -> tuple[int, int] | None:
    """Find a needle in a prompt, although tokenisation moved its borders: [start, end), or None.

    It is the first window of the needle's length whose distinct tokens cover more than `threshold` of the needle's.
    """
    needle, size = set(needle_ids), len(needle_ids)
    if not needle:
        return None
    for start in range(len(prompt_ids) - size + 1):
        if len(needle.intersection(prompt_ids[start : start + size])) > threshold * len(needle):
            return start, start + size
    return None


def _prompt(codec: Codec, user: str, answer: str, *, chat: bool | None) -> Prompt:
    templated = codec.chat_template is not None if chat is None else chat
    text = codec.chat([{"role": "user", "content": user}]) if templated else user
    ids = codec.encode(text, special=not templated)
    reply = answer if templated else f" {answer}"
    answer_ids = codec.encode(reply, special=False)
    # In the context the answer stands behind a space or a quotation mark, which may belong to its first token.
    alone = (codec.encode(form, special=False) for form in (f" {answer}", answer))
    spans = [needle_span(ids, one) for one in alone]
    return Prompt(text, user, ids, reply, answer_ids, next((span for span in spans if span), None))


def _key(rng: random.Random, characters: int) -> str:
    return "".join(rng.choices(string.ascii_letters + string.digits, k=characters))


def _sentence(rng: random.Random, words: int) -> str:
    if words == 0:
        return "".join(rng.choices(string.ascii_lowercase, k=8))
    return " ".join(_prose(rng).rstrip(".").split()[:words])


_PHRASES = """
The miller, An old sailor, Her younger brother, The librarian, A travelling painter, The innkeeper,
Nobody in the village, The schoolteacher, Every second farmer, The watchmaker, A quiet stranger, The ferryman,
My grandmother, The gardener of the abbey, A young carpenter, The baker's daughter;
walked along, looked at, remembered, had always avoided, wrote a long letter about, sold, repaired, dreamed of,
counted the stones of, drew a careful map of, spoke kindly of, closed the door of, carried flour past,
heard rumours about, waited all afternoon beside, painted a small picture of;
the wooden bridge, the empty market square, a field of barley, the chapel on the hill, the northern road,
a broken cart, the orchard behind the wall, the harbour, an abandoned railway station, the frozen pond,
a row of chestnut trees, the town hall, the ruins of the castle, a bundle of papers, the narrow stairs,
the weather station;
before the rain began, in the early morning, although it was already dark, on the last day of the fair,
while the bells were ringing, without saying a word, for the third time that week, as the fog lifted,
when the harvest was over, because the train was late, long after supper, under a pale autumn sun,
and nobody asked why, just as he had promised, with great patience, to the surprise of the children
"""
_PARTS = [[phrase.strip() for phrase in part.split(",")] for part in _PHRASES.split(";")]
"""Who, did, what, when."""


def _prose(rng: random.Random) -> str:
    return f"{' '.join(map(rng.choice, _PARTS))}."
