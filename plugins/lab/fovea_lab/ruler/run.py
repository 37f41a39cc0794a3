"""RULER-form evaluation of methods on one decoder: samples, variants, blocks of answers, one report.

Earlier answers are read from a file of predictions and not computed again. Knows the engine; no HTTP and no
terminal.
"""

import hashlib
import json
import platform
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

import torch

from fovea.errors import InvalidOption
from fovea_lab.ruler.answer_store import append_answers, read_answers
from fovea_lab.ruler.answering import Answer, PromptTokens, answer_prompts
from fovea_lab.ruler.method_variants import BASELINES, MethodVariant, list_variants
from fovea_lab.ruler.report import Cell, Prediction, RulerReport, build_report
from fovea_lab.ruler.samples.generation import generate
from fovea_lab.ruler.samples.sample import RenderedSample, RulerSample, render
from fovea_lab.ruler.samples.task import TASKS
from fovea_lab.ruler.scoring import score
from fovea_lab.ruler.spec import RulerSpec
from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.kv_cache import PoolExhausted
from shared.lm.head_plan import HeadPlan
from shared.lm.tokenizer import Tokenizer

BLOCK = 24
"""Prompts that are answered together, whatever their methods, and whose answers are kept together."""

T = TypeVar("T")


def run_at_once(work: Generator[None, None, T]) -> T:
    """Do work in pieces without a pause."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


@dataclass(frozen=True)
class EvaluatedModel:
    """The model that is evaluated; `do` runs work in steps, at once or on a scheduler's thread."""

    engine: Engine
    tokenizer: Tokenizer
    plans: Mapping[str, HeadPlan]
    name: str
    do: Callable[[Generator[None, None, list[Answer]]], list[Answer]] = run_at_once


def run_ruler(
    on: EvaluatedModel,
    spec: RulerSpec,
    *,
    progress: Callable[[float, str], None] = lambda _share, _note: None,
    check: Callable[[], None] = lambda: None,
    qa: Path | None = None,
    corpus: str | None = None,
    store: Path | None = None,
    extra: Iterable[Prediction] = (),
) -> RulerReport:
    """Evaluate methods, dense next to them on the same samples.

    Args:
        on: The model.
        spec: The evaluation.
        progress: Hears of the share that is done.
        check: Raises where the caller went away; asked between blocks.
        qa: File of questions for `qa_1` and `qa_2`.
        corpus: Prose for haystacks; None: Python's help topics.
        store: Predictions as JSONL: read first, and appended to.
        extra: Predictions of others on the same samples (peers).

    Raises:
        InvalidOption: A task or method is unknown, a length is too short or too long, or a peer had other samples.
    """
    samples, found = _generate_all(on, spec, qa, corpus), list(extra)
    _check_peers(found, samples, spec.protocols)
    jobs, refused = _list_jobs(on, spec, samples)
    known = read_answers(store)

    def answer(wanted: Sequence[_Job]) -> list[Prediction]:
        todo = [job for job in wanted if job.key not in known]
        left = len(todo)
        for protocol in spec.protocols:
            mine = [job for job in todo if job.protocol == protocol]
            for begin in range(0, len(mine), BLOCK):
                check()
                progress(1 - left / len(jobs), f"{left} answers left")
                block = mine[begin : begin + BLOCK]
                keys, answered = [job.key for job in block], _answer_jobs(on, block, protocol)
                append_answers(store, keys, answered)
                known.update(zip(keys, answered, strict=True))
                left -= len(block)
        return [known[job.key].model_copy(update=job.sample.facts()) for job in wanted]  # lengths may share a sample

    if "informative" in spec.tasks:
        dense = build_report(answer([job for job in jobs if job.variant.name == "dense"]), spec={}, manifest={})
        telling = {(int(length), task) for length, tasks in dense.informative.items() for task in tasks}
        jobs = [job for job in jobs if job.variant.name == "dense" or (job.sample.length, job.sample.task) in telling]
        refused = [cell for cell in refused if (cell.length, cell.task) in telling]
    found += answer(jobs)
    return build_report(found, spec=spec.model_dump(mode="json"), manifest=_manifest(on, samples), refused=refused)


def _check_peers(
    found: Sequence[Prediction], samples: Mapping[tuple[int, str], Sequence[RulerSample]], protocols: Sequence[str]
) -> None:
    """Refuse a peer that answered none of the samples of a task: nothing can be paired with dense."""
    digests = {one.digest for rows in samples.values() for one in rows}

    def cell_of(one: Prediction) -> tuple[object, ...]:
        return one.method, one.budget, one.protocol, one.length, one.task

    paired = {cell_of(one) for one in found if one.digest in digests and one.protocol in protocols}
    for one in found:
        if (one.length, one.task) in samples and cell_of(one) not in paired:
            detail = (
                f"The answers of {one.method} to {one.task} at {one.length:,} tokens, {one.protocol}, are on no sample "
                "of this run."
            )
            hint = "Export samples with the same seed, n and questions, and run the same protocol."
            raise InvalidOption(detail, hint=hint, field="score")


def measure_costs(on: EvaluatedModel, spec: RulerSpec, rounds: int = 3) -> dict[str, float]:
    """Time in which each method reads a context that nobody has read, times dense's: medians, all take turns."""
    one = spec.model_copy(
        update={"n": 1, "tasks": spec.task_names()[:1], "lengths": [max(spec.lengths)], "budgets": spec.budgets[:1]}
    )
    jobs, _ = _list_jobs(on, one, _generate_all(on, one, None, None))
    taken = defaultdict[str, list[float]](list)
    for job in jobs * rounds:
        on.engine.prefix_cache.clear()
        prompt = replace(job.prompt, question_ids=job.prompt.question_ids[:1], max_new_tokens=1)
        [answer] = _answer_jobs(on, [replace(job, prompt=prompt)], job.protocol)
        taken[job.variant.name].append(answer.seconds)
    dense = median(taken["dense"])
    return {name: median(seconds) / dense for name, seconds in taken.items()}


def export_samples(
    on: EvaluatedModel, spec: RulerSpec, *, qa: Path | None = None, corpus: str | None = None
) -> Iterator[dict[str, Any]]:
    """Samples with their tokens, for peers that run our prompts and leave scoring to us."""
    for rows in _generate_all(on, spec, qa, corpus).values():
        for sample in rows:
            ids = render(on.tokenizer, sample)
            yield {
                **sample.facts(),
                "max_new_tokens": min(sample.max_new_tokens, spec.max_answer or sample.max_new_tokens),
                "context_ids": list(ids.context_ids),
                "question_ids": list(ids.question_ids),
            }


def _generate_all(
    on: EvaluatedModel, spec: RulerSpec, qa: Path | None, corpus: str | None
) -> dict[tuple[int, str], list[RulerSample]]:
    if (longest := max(spec.lengths)) > on.engine.model.config.positions:
        detail = f"{longest:,} tokens exceed the context of {on.engine.model.config.positions:,}."
        raise InvalidOption(detail, field="lengths")
    made = {}
    for length in spec.lengths:
        for task in spec.task_names():
            questions = min(spec.questions, TASKS[task].max_questions)
            made[length, task] = generate(
                task, on.tokenizer, length=length, n=spec.n, seed=spec.seed, corpus=corpus, questions=questions, data=qa
            )
    return made


@dataclass(frozen=True, eq=False)
class _Job:
    """One answer that is wanted."""

    protocol: Literal["agnostic", "aware"]
    variant: MethodVariant
    sample: RulerSample
    prompt: PromptTokens
    seen: int
    key: str


def _list_jobs(
    on: EvaluatedModel, spec: RulerSpec, samples: Mapping[tuple[int, str], Sequence[RulerSample]]
) -> tuple[list[_Job], list[Cell]]:
    """Answers that are wanted, and cells that there can't be.

    Sample by sample, dense first: a run that was cut short has as many samples of every method, and a context is read
    once for all of them.
    """
    jobs, refused = list[_Job](), list[Cell]()
    variants = list_variants(spec.methods, spec.budgets)
    for protocol, (length, task), variant in product(spec.protocols, samples, variants):
        try:
            jobs += [_build_job(on, spec, protocol, variant, sample) for sample in samples[length, task]]
        except InvalidOption as error:
            facts = {"task": task, "length": length, "method": variant.name, "budget": variant.budget}
            refused.append(Cell(**facts, protocol=protocol, reason=error.detail))
    jobs.sort(key=lambda job: (job.protocol, job.sample.length, job.sample.index, job.sample.task))
    return jobs, refused


def _build_job(
    on: EvaluatedModel,
    spec: RulerSpec,
    protocol: Literal["agnostic", "aware"],
    variant: MethodVariant,
    sample: RulerSample,
) -> _Job:
    ids: RenderedSample = render(on.tokenizer, sample)
    seen = len(ids.context_ids) + (len(ids.question_ids) if protocol == "aware" else 0)
    most = min(sample.max_new_tokens, spec.max_answer or sample.max_new_tokens)
    policy = variant.policy(on.engine, on.plans, seen)
    prompt = PromptTokens(variant.trim(ids.context_ids, seen), ids.question_ids, policy, most)
    return _Job(protocol, variant, sample, prompt, seen, _key(on, spec, protocol, variant, sample, policy))


def _answer_jobs(on: EvaluatedModel, jobs: Sequence[_Job], protocol: Literal["agnostic", "aware"]) -> list[Prediction]:
    """Answer together, or in halves where they don't fit."""
    try:
        prompts, prefixes = [job.prompt for job in jobs], on.engine.prefix_cache
        work = answer_prompts(on.engine.runner, prefixes, prompts, on.tokenizer.eos, protocol)
        answers = on.do(work)
    except PoolExhausted:
        if len(jobs) == 1:
            raise
        half = len(jobs) // 2
        return _answer_jobs(on, jobs[:half], protocol) + _answer_jobs(on, jobs[half:], protocol)
    return [_predict(on, job, answer) for job, answer in zip(jobs, answers, strict=True)]


def _predict(on: EvaluatedModel, job: _Job, answer: Answer) -> Prediction:
    text, sample, name = on.tokenizer.decode(answer.tokens, special=False), job.sample, job.variant.name
    return Prediction(
        **sample.facts(),
        method=name,
        knobs={} if name in BASELINES else job.prompt.policy.method.model_dump(mode="json"),
        plan=None if job.prompt.policy.plan is None else job.prompt.policy.plan.digest,
        budget=job.variant.budget,
        protocol=job.protocol,
        prediction=text,
        score=score(sample.task, text, sample.references),
        tokens=len(answer.tokens),
        kv_bytes=answer.kv_bytes,
        kv_bytes_dense=on.engine.dense_bytes(job.seen),
        kv_bytes_end=answer.kv_bytes_end,
        kv_bytes_peak=answer.kv_bytes_peak,
        prefill_density=answer.density,
        seconds=round(answer.seconds, 4),
    )


def _key(
    on: EvaluatedModel, spec: RulerSpec, protocol: str, variant: MethodVariant, sample: RulerSample, policy: Policy
) -> str:
    facts = [
        policy.cache_bits, None if policy.plan is None else policy.plan.digest,
        on.engine.pool.page,
        on.engine.runner.weights_sha256, str(on.engine.pool.keys.dtype), protocol, variant.name, variant.budget,
        variant.options.model_dump(mode="json", exclude_unset=True), sample.digest, spec.max_answer,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _manifest(on: EvaluatedModel, samples: Mapping[tuple[int, str], Sequence[RulerSample]]) -> dict[str, Any]:
    """Provenance of the numbers besides the spec."""
    digests = {
        f"{task}/{length}": hashlib.sha256("".join(one.digest for one in rows).encode()).hexdigest()
        for (length, task), rows in samples.items()
    }
    return {
        "model": on.name,
        "weights_sha256": on.engine.runner.weights_sha256,
        "dtype": str(on.engine.pool.keys.dtype).removeprefix("torch."),
        "page": on.engine.pool.page,
        "backend": str(on.engine.kernels),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "samples_sha256": digests,
    }
