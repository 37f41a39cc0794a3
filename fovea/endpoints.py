"""Endpoints of the gateway: one function each, which builds a `Call` and sends nothing.

A task's request is JSON, or multipart when it has pictures, so that they are sent as they are and not as base64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Unpack

import httpx2
from pydantic import TypeAdapter

from fovea.api.job import Job, JobList
from fovea.api.mask import SegmentOut
from fovea.api.model import ModelEntry, ModelList, sort_tasks
from fovea.api.sweeps import Sweep
from fovea.call import Call, StreamCall, parse_as, quote_id, read_bytes, read_json
from fovea.chat import ChatAnswer, ChatOptions, ChatPiece, Messages, build_messages
from fovea.errors import NotFound
from fovea.picture import PictureLike, read_picture
from fovea.results import JobResult, MethodCard, ModelCard, SegmentOptions, SweepOptions

_PATHS = {"chat": "/v1/chat/completions", "complete": "/v1/completions"}
"""Tasks with a path of OpenAI's; every other task is at `/v1/<task>`."""


def task_path(name: str) -> str:
    """The POST path of a task."""
    return _PATHS.get(name, f"/v1/{quote_id(name, '/')}")


def models(task: str | None = None) -> Call[list[ModelEntry]]:
    """List the served models, or those of one task; the default chat model comes first."""
    return Call("GET", "/v1/models", lambda answer: parse_as(ModelList)(answer).data, params={"task": task})


def model(name: str) -> Call[ModelCard]:
    """Get the card of one model: facts, metrics, limits, tensors and the schema of its requests."""
    return Call("GET", f"/v1/models/{quote_id(name, '/')}", parse_as(ModelCard))


def example(name: str) -> Call[dict[str, Any]]:
    """Get a request of this model that can be sent as it is; its pictures are base64."""
    return Call("GET", f"/v1/models/{quote_id(name, '/')}/example", read_json)


def task(
    name: str, options: Mapping[str, Any], pictures: Mapping[str, PictureLike | None], *, accept: str | None = None
) -> Call[Any]:
    """Run a task: JSON as Python values, or bytes when `accept` asks for another media type, or `stream` for events."""
    headers = {"accept": accept} if accept else {}
    read = read_json if accept in {None, "application/json"} and not options.get("stream") else read_bytes
    options = {option: value for option, value in options.items() if value is not None}
    parts = {field: read_picture(source) for field, source in pictures.items() if source is not None}
    if not parts:
        return Call("POST", task_path(name), read, json=options, headers=headers)
    return Call("POST", task_path(name), read, files=parts, form=options, headers=headers)


def allow_job(call: Call[Any]) -> Call[Any]:
    """Allow a `Job` as the answer of a call: services queue what takes long."""

    def read(response: httpx2.Response) -> Any:
        return (parse_as(Job) if response.status_code == HTTPStatus.ACCEPTED else call.read)(response)

    return replace(call, read=read)


def segment(image: PictureLike, *, model: str | None = None, **options: Unpack[SegmentOptions]) -> Call[SegmentOut]:
    """Segment a picture.

    Args:
        image: Encoded bytes, a path, or a file opened for reading bytes.
        model: Which model; the gateway's default otherwise.
        options: As `fovea.api.mask.SegmentIn` describes them; `include` selects the parts of the answer.
    """
    return replace(task("segment", {"model": model, **options}, {"image": image}), read=parse_as(SegmentOut))


def chat(
    messages: Messages, *, model: str | None = None, system: str | None = None, **options: Unpack[ChatOptions]
) -> Call[ChatAnswer]:
    """Get the whole answer to a question or a conversation; `answer.text` is its text."""
    request = {"model": model, "messages": build_messages(messages, system), **options}
    return replace(task("chat", request, {}), read=parse_as(ChatAnswer))


def chat_stream(
    messages: Messages, *, model: str | None = None, system: str | None = None, **options: Unpack[ChatOptions]
) -> StreamCall[ChatPiece]:
    """Stream the answer to a conversation; the last event has the number of tokens."""
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    request = {"model": model, "messages": build_messages(messages, system), **options, **streaming}
    call = task("chat", request, {}, accept="text/event-stream")
    return StreamCall(call, ChatPiece.model_validate_json, end="[DONE]")


def sweep(prompt: str | Sequence[Any], tokens: Sequence[str | int], **options: Unpack[SweepOptions]) -> Call[Sweep]:
    """Patch one activation of a prompt after another; get a grid of named next tokens: layers by positions or heads.

    Args:
        prompt: The patched prompt: a text, its token ids, or messages.
        tokens: Next tokens to look at: texts of one token each, or ids.
        options: As `fovea.api.sweeps.SweepRequest` describes them.
    """
    given = {"prompt": prompt, "tokens": [tokens] if isinstance(tokens, str) else list(tokens), **options}
    return Call("POST", "/v1/sweeps", parse_as(Sweep), json={name: x for name, x in given.items() if x is not None})


def pick_default_model(task_name: str, entries: Sequence[ModelEntry]) -> str:
    """Pick the model that a task uses when none is named: the first that is ready or will be soon, else the first.

    A model that still loads keeps its place: another one gives other answers.

    Raises NotFound: no served model does this task.
    """
    matching = [entry for entry in entries if entry.task == task_name]
    if not matching:
        tasks = ", ".join(sort_tasks(entry.task for entry in entries))
        raise NotFound(f"No served model does {task_name!r}.", hint=f"Tasks: {tasks or 'none yet'}.")
    fit = (e for e in matching if e.ready or getattr(e, "state", None) in {"waiting", "loading"})
    return next(fit, matching[0]).id


def report(key: str, form: str) -> Call[bytes]:
    """Fetch a stored report of an experiment in one form, for example `html` or `svg`."""
    return Call("GET", f"/v1/probe/reports/{quote_id(key)}", read_bytes, params={"format": form})


def methods() -> Call[list[MethodCard]]:
    """List the attention methods that a chat may use."""
    cards = TypeAdapter(list[MethodCard])
    return Call("GET", "/v1/longctx/methods", lambda answer: cards.validate_json(answer.content))


def as_job(call: Call[Any], idempotency_key: str | None = None) -> Call[Job]:
    """Turn any POST into one that is queued as a job."""
    headers = {**call.headers, "prefer": "respond-async"}
    if idempotency_key is not None:
        headers["idempotency-key"] = idempotency_key
    return replace(call, headers=headers, read=parse_as(Job))


def jobs(limit: int = 50, *, dead: bool = False, after: str | None = None) -> Call[list[Job]]:
    """List the caller's jobs, newest first, behind the id `after`; with `dead` only dead letters."""
    params = {"limit": limit, "dead": "true" if dead else None, "after": after}
    return Call("GET", "/v1/jobs", lambda answer: parse_as(JobList)(answer).jobs, params=params)


def job(job_id: str) -> Call[Job]:
    """Get the current state of a job."""
    return Call("GET", _job_path(job_id), parse_as(Job))


def job_events(job_id: str) -> StreamCall[Job]:
    """Follow a job, event by event."""
    call = Call("GET", f"{_job_path(job_id)}/events", read_bytes, headers={"accept": "text/event-stream"})
    return StreamCall(call, Job.model_validate_json)


def result(job_id: str) -> Call[JobResult]:
    """Get the answer of a finished job.

    Raises Conflict: it is not finished; FoveaError: the error that the request was answered with.
    """
    return Call("GET", f"{_job_path(job_id)}/result", JobResult.from_response)


def cancel(job_id: str) -> Call[Job]:
    """Cancel a job, also while it runs; a finished job is left as it is."""
    return Call("POST", f"{_job_path(job_id)}/cancel", parse_as(Job))


def delete(job_id: str) -> Call[Job]:
    """Cancel a job that is not over; forget a finished one with its request and its answer. Returns its last state."""
    return Call("DELETE", _job_path(job_id), parse_as(Job))


def retry(job_id: str) -> Call[Job]:
    """Queue a failed or cancelled job again. Raises Conflict: it neither failed nor was cancelled."""
    return Call("POST", f"{_job_path(job_id)}/retry", parse_as(Job))


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote_id(job_id)}"
