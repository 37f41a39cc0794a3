"""Generation of RULER-form samples: drafts fitted to a length in tokens of one tokenizer.

A pure function of its arguments: sample i is the same however many are asked for. Knows text and tokens; no model.
"""

from functools import cache
from pathlib import Path

from fovea.errors import InvalidOption
from fovea_lab.ruler.samples.coded_words import draft_coded_words
from fovea_lab.ruler.samples.common_words import draft_common_words
from fovea_lab.ruler.samples.documents import draft_documents
from fovea_lab.ruler.samples.draft import Draft, Passage, seed_streams
from fovea_lab.ruler.samples.needles import draft_needles
from fovea_lab.ruler.samples.placement import fit
from fovea_lab.ruler.samples.prose import split_sentences
from fovea_lab.ruler.samples.sample import RulerSample, render_text
from fovea_lab.ruler.samples.task import TASKS, Task
from fovea_lab.ruler.samples.variable_chains import draft_chains
from shared.lm.niah_prompts import Codec


def generate(
    task: str,
    codec: Codec,
    *,
    length: int,
    n: int,
    seed: int = 42,
    corpus: str | None = None,
    questions: int = 1,
    chat: bool | None = None,
    data: Path | None = None,
) -> list[RulerSample]:
    """Generate samples of one task.

    Args:
        task: By name.
        codec: Tokenizer that counts.
        length: Most tokens of prompt, template and answer together.
        n: Samples.
        seed: Of everything that is drawn.
        corpus: Prose to hide needles in; None: Python's help topics.
        questions: Questions per context; samples of one context share `group`.
        chat: Under the chat template; left out, where there is one.
        data: File of questions for `qa_1` and `qa_2`.

    Raises:
        InvalidOption: No such task, a length under its least, too many questions, or a file is missing.
    """
    if (known := TASKS.get(task)) is None:
        raise InvalidOption(f"There is no RULER-form task {task!r}; known are {', '.join(TASKS)}.", field="tasks")
    if not 1 <= questions <= known.max_questions:
        detail = f"{task} can ask {known.max_questions} question(s) of one context, not {questions}."
        raise InvalidOption(detail, field="questions")
    samples: list[RulerSample] = []
    for group in range(-(-n // questions)):
        draft = _draft(known, group, length, seed, corpus, questions, data)
        samples += _fit_group(known, draft, codec, group, length, seed, questions, chat=chat)
    return samples[:n]


def _draft(
    task: Task, group: int, length: int, seed: int, corpus: str | None, questions: int, data: Path | None
) -> Draft:
    rng, filler = seed_streams(seed, task.name, group)
    if task.kind == "vt":
        return draft_chains(rng)
    if task.kind == "cwe":
        return draft_common_words(rng, filler, length)
    if task.kind == "fwe":
        return draft_coded_words(rng, filler, length)
    if task.kind == "qa":
        if data is None:
            detail = f"{task.name} runs on a file of questions, and there is none."
            raise InvalidOption(detail, hint="Give one with --qa: JSONL, SQuAD 2 or HotpotQA.", field="qa")
        return draft_documents(Path(data), group, rng, filler)
    prose = split_sentences(corpus) if task.haystack == "prose" else None
    return draft_needles(task, rng, filler, questions, prose)


def _fit_group(
    task: Task, draft: Draft, codec: Codec, group: int, length: int, seed: int, questions: int, *, chat: bool | None
) -> list[RulerSample]:
    @cache
    def count(units: int) -> tuple[int, ...]:
        return _count_tokens(codec, draft.build(units), chat=chat)

    def measure(units: int) -> int:
        return max(count(units)) + task.max_new_tokens if units <= draft.most else length + 1

    units = fit(measure, length, first=draft.first)
    passage = draft.build(units)
    return [
        RulerSample(
            task.name,
            group * questions + i,
            getattr(draft, "group", group),
            passage.context,
            question.text,
            question.prefix,
            question.references,
            task.max_new_tokens,
            length,
            tokens,
            seed,
            passage.depths,
        )
        for i, (question, tokens) in enumerate(zip(passage.questions, count(units), strict=True))
    ]


def _count_tokens(codec: Codec, passage: Passage, *, chat: bool | None) -> tuple[int, ...]:
    """Tokens of the prompt of each question."""
    rendered = [render_text(codec, passage.context, one.text, one.prefix, chat=chat) for one in passage.questions]
    return tuple(len(one.context_ids) + len(one.question_ids) for one in rendered)
