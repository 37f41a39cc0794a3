"""What the gateway offers, one function per deed: each gives a `Call` and sends nothing.

A domain request goes out as JSON, or as multipart when it carries pictures, so that their bytes are never inflated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel

from fovea.call import Call, StreamCall, read_bytes, read_json
from fovea.chat import ChatAnswer, ChatPiece
from fovea.picture import PictureLike, read_picture
from fovea.results import JobResult, ModelCard
from shared.api.job import Job, JobList
from shared.api.mask import SegmentOut
from shared.api.model import ModelEntry, ModelList
from shared.errors import NotFound

__all__ = [
    "as_job",
    "cancel",
    "chat",
    "chat_stream",
    "example",
    "job",
    "job_events",
    "jobs",
    "model",
    "models",
    "pick_default_model",
    "result",
    "retry",
    "segment",
    "task",
]

Model = TypeVar("Model", bound=BaseModel)

_PATHS = {"chat": "/v1/chat/completions", "complete": "/v1/completions"}
"""Tasks that are served under OpenAI's paths; every other task is at `/v1/<task>`."""


def models(task: str | None = None) -> Call[list[ModelEntry]]:
    """List what is served, or what does one task."""

    def read(response: httpx2.Response) -> list[ModelEntry]:
        return ModelList.model_validate_json(response.content).data

    return Call("GET", "/v1/models", read, params={"task": task})


def model(name: str) -> Call[ModelCard]:
    """Fetch everything about one model."""
    return Call("GET", f"/v1/models/{quote(name)}", parse_as(ModelCard))


def example(name: str) -> Call[dict[str, Any]]:
    """Fetch a request that can be sent as it is."""
    return Call("GET", f"/v1/models/{quote(name)}/example", read_json)


HTTP_ACCEPTED = 202


def task(
    name: str, options: Mapping[str, Any], pictures: Mapping[str, PictureLike | None], *, accept: str | None = None
) -> Call[Any]:
    """Run a task: its JSON as Python values, or bytes when `accept` asks for another form."""
    path = _PATHS.get(name, f"/v1/{quote(name)}")
    headers = {"accept": accept} if accept else {}
    read = read_json if accept in {None, "application/json"} else read_bytes
    given = {option: value for option, value in options.items() if value is not None}
    parts = {field: read_picture(source).part for field, source in pictures.items() if source is not None}
    if not parts:
        return Call("POST", path, read, json=given, headers=headers)
    return Call("POST", path, read, files=parts, form=_texts(given), headers=headers)


def allow_job(call: Call[Any]) -> Call[Any]:
    """The same call, whose answer may be a `Job`: services queue by themselves what takes long."""

    def read(response: httpx2.Response) -> Any:
        return (
            Job.model_validate_json(response.content) if response.status_code == HTTP_ACCEPTED else call.read(response)
        )

    return replace(call, read=read)


def segment(image: PictureLike, model: str | None, options: Mapping[str, Any]) -> Call[SegmentOut]:
    """Segment a picture."""
    return replace(task("segment", {"model": model, **options}, {"image": image}), read=parse_as(SegmentOut))


def chat(messages: Sequence[Mapping[str, Any]], model: str | None, options: Mapping[str, Any]) -> Call[ChatAnswer]:
    """Answer a conversation as a whole."""
    return replace(task("chat", {"model": model, "messages": messages, **options}, {}), read=parse_as(ChatAnswer))


def chat_stream(
    messages: Sequence[Mapping[str, Any]], model: str | None, options: Mapping[str, Any]
) -> StreamCall[ChatPiece]:
    """Answer a conversation piece by piece; the last piece says how many tokens it took."""
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    call = task("chat", {"model": model, "messages": messages, **options, **streaming}, {}, accept="text/event-stream")
    return StreamCall(call, ChatPiece.model_validate_json)


def pick_default_model(task_name: str, entries: Sequence[ModelEntry]) -> str:
    """The model that a task uses when none is named: the first that is ready, else the first.

    Raises:
        NotFound: No served model does the task.
    """
    fitting = [entry for entry in entries if entry.task == task_name]
    if not fitting:
        tasks = ", ".join(sorted({entry.task for entry in entries}))
        raise NotFound(f"No served model does {task_name!r}.", hint=f"Tasks are: {tasks or 'none yet'}.")
    return next((entry.id for entry in fitting if entry.ready), fitting[0].id)


def as_job(call: Call[Any], idempotency_key: str | None = None) -> Call[Job]:
    """Turn any POST into one that is answered later."""
    headers = {**call.headers, "prefer": "respond-async"}
    if idempotency_key is not None:
        headers["idempotency-key"] = idempotency_key
    return replace(call, headers=headers, read=parse_as(Job))


def jobs(limit: int, *, dead: bool = False) -> Call[list[Job]]:
    """List the caller's jobs, newest first."""

    def read(response: httpx2.Response) -> list[Job]:
        return JobList.model_validate_json(response.content).jobs

    return Call("GET", "/v1/jobs", read, params={"limit": limit, "dead": "true" if dead else None})


def job(job_id: str) -> Call[Job]:
    """Fetch a job as it stands."""
    return Call("GET", _job(job_id), parse_as(Job))


def job_events(job_id: str) -> StreamCall[Job]:
    """Follow a job."""
    call = Call("GET", f"{_job(job_id)}/events", read_bytes, headers={"accept": "text/event-stream"})
    return StreamCall(call, Job.model_validate_json)


def result(job_id: str) -> Call[JobResult]:
    """Fetch the answer of a finished job."""
    return Call("GET", f"{_job(job_id)}/result", JobResult.of)


def cancel(job_id: str) -> Call[Job]:
    """Cancel a job, also while it runs."""
    return Call("POST", f"{_job(job_id)}/cancel", parse_as(Job))


def retry(job_id: str) -> Call[Job]:
    """Queue a failed or cancelled job again."""
    return Call("POST", f"{_job(job_id)}/retry", parse_as(Job))


def parse_as(kind: type[Model]) -> Callable[[httpx2.Response], Model]:
    """A reader of bodies that are a `kind` in JSON."""

    def read(response: httpx2.Response) -> Model:
        return kind.model_validate_json(response.content)

    return read


def _job(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _texts(options: Mapping[str, Any]) -> dict[str, str]:
    """Options as form fields: text as it is, everything else as JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
