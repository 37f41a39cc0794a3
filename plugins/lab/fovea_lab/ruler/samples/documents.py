"""Documents of a file of the user's, and a question about one of them among the others."""

import json
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fovea.cli.text_files import read_text
from fovea.errors import InvalidOption, Malformed
from fovea_lab.ruler.samples.draft import Draft, Passage, PassageQuestion

MAX_QA_BYTES = 64 * 2**20
"""Largest file of questions that is read."""


@dataclass(frozen=True, slots=True)
class QaRow:
    """A question with its answers, the documents that hold them, and documents of the same article that don't."""

    question: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]
    nearby: tuple[str, ...] = ()


@lru_cache(maxsize=4)
def read_qa(path: Path) -> tuple[QaRow, ...]:
    """Rows of a file: JSONL of `{question, answers, documents}`, SQuAD 2 JSON or HotpotQA JSON.

    Raises:
        InvalidOption: It is too large, or has no rows.
        Malformed: It is none of these.
    """
    if path.stat().st_size > MAX_QA_BYTES:
        raise InvalidOption(f"{path.name} is larger than {MAX_QA_BYTES:,} bytes.", field="qa")
    try:
        rows = _read_rows(read_text(path))
    except (KeyError, TypeError, ValueError) as error:
        detail = f"{path.name} is not a file of questions: {error}."
        hint = (
            'Write a line {"question": …, "answers": […], "documents": […]} per question, or give SQuAD 2 or HotpotQA.'
        )
        raise Malformed(detail, hint=hint, field="qa") from error
    if not rows:
        raise InvalidOption(f"{path.name} has no question with an answer.", field="qa")
    return tuple(rows)


def _read_rows(text: str) -> list[QaRow]:
    begins = text.lstrip()[:1]
    if begins == "[":
        return [_hotpot(one) for one in json.loads(text)]
    if begins == "{" and "\n{" not in text.strip() and "paragraphs" in text:
        return [row for article in json.loads(text)["data"] for row in _squad(article)]
    given = [json.loads(line) for line in text.split("\n") if line.strip()]
    if any(not isinstance(x[part], list) for x in given for part in ("answers", "documents")):
        raise TypeError("answers and documents are lists of texts")
    return [QaRow(str(x["question"]), _answers(x["answers"]), tuple(map(str, x["documents"]))) for x in given]


def _answers(given: Any) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(str(x) for x in given if str(x).strip()))
    if not found:
        raise ValueError("a question has no answer")
    return found


def _squad(article: dict[str, Any]) -> list[QaRow]:
    texts = [paragraph["context"] for paragraph in article["paragraphs"]]
    return [
        QaRow(
            one["question"],
            _answers(answer["text"] for answer in one["answers"]),
            (paragraph["context"],),
            tuple(text for text in texts if text != paragraph["context"]),
        )
        for paragraph in article["paragraphs"]
        for one in paragraph["qas"]
        if not one.get("is_impossible") and one["answers"]
    ]


def _hotpot(one: dict[str, Any]) -> QaRow:
    named = {title: f"{title}\n{''.join(sentences)}" for title, sentences in one["context"]}
    gold = {title for title, *_ in one["supporting_facts"]}
    return QaRow(
        one["question"],
        _answers([one["answer"]]),
        tuple(text for title, text in named.items() if title in gold),
        tuple(text for title, text in named.items() if title not in gold),
    )


@dataclass(frozen=True)
class _Documents:
    row: QaRow
    distractors: tuple[str, ...]
    filler: int
    group: int  # of the question: in a short file it comes again, and its answers hang together

    @property
    def first(self) -> int:
        return len(self.row.documents)

    @property
    def most(self) -> int:
        return len(self.row.documents) + len(self.distractors)

    def build(self, units: int) -> Passage:
        documents = [*self.row.documents, *self.distractors[: units - len(self.row.documents)]]
        random.Random(self.filler).shuffle(documents)
        intro = "Answer the question from the documents below. Give the answer alone, without other words."
        text = "\n\n".join(f"Document {i}:\n{one}" for i, one in enumerate(documents, 1))
        again = "Answer the question from the documents above. Give the answer alone, without other words."
        question = PassageQuestion(f"{again}\n\nQuestion: {self.row.question}", "Answer:", self.row.answers)
        return Passage(f"{intro}\n\n{text}\n", (question,))


def draft_documents(path: Path, group: int, rng: random.Random, filler: int) -> Draft:
    """A row of a file among documents of others."""
    rows = read_qa(path)
    order = list(range(len(rows)))
    random.Random(f"{path.name}|rows").shuffle(order)
    group %= len(rows)
    row = rows[order[group]]
    others = [text for one in rows if one is not row for text in one.documents]
    rng.shuffle(others)
    seen = dict.fromkeys([*row.nearby, *others])
    return _Documents(row, tuple(text for text in seen if text not in row.documents), filler, group)
