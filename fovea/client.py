"""Synchronous client: sends the calls of `fovea.endpoints` with httpx2."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2

from fovea import endpoints
from fovea.api.job import FINAL, Job
from fovea.api.mask import SegmentOut
from fovea.api.model import ModelEntry
from fovea.api.sweeps import Sweep
from fovea.call import Call, StreamCall
from fovea.chat import ChatAnswer, ChatOptions, ChatPiece, Messages, build_messages
from fovea.error_responses import parse_error, translate_errors
from fovea.lora import LoraAdapters
from fovea.picture import PictureLike
from fovea.results import JobResult, ModelCard, SegmentOptions, SweepOptions
from fovea.retry import STREAM_RESUME_S, JobWatcher, RetryPolicy, iterate_pauses
from fovea.steering import Captures, SteeringVectors
from fovea.transport import LOCAL, Address

Answer = TypeVar("Answer")
Item = TypeVar("Item")


class Client:
    """Talks to a gateway; a context manager that is safe to share between threads.

    Args:
        url: Scheme, host and port of the gateway.
        key: API key, where the gateway requires one.
        timeout: Longest wait for one answer, seconds.
        retry_policy: How often requests that were refused for now (429, 503) are sent again.
        transport: For tests: replaces the network.

    Raises:
        Malformed: The URL is not valid.

    Every method raises the classes of `fovea.errors` for errors of the gateway, and `NotReady` when none answers.
    """

    def __init__(
        self,
        url: str = LOCAL,
        *,
        key: str | None = None,
        timeout: float = 300.0,
        retry_policy: RetryPolicy | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.url = url
        self.jobs = Jobs(self)
        self.steering_vectors = SteeringVectors(self)
        self.lora_adapters = LoraAdapters(self)
        self.captures = Captures(self)
        self._retry_policy = retry_policy or RetryPolicy()
        self._http = httpx2.Client(**Address(url, key, timeout).client_options(), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self, task: str | None = None) -> list[ModelEntry]:
        """List the served models, or those of one task; the default chat model comes first."""
        return self.send(endpoints.models(task))

    def model(self, name: str) -> ModelCard:
        """Get the card of one model: facts, metrics, limits, tensors and the schema of its requests."""
        return self.send(endpoints.model(name))

    def example(self, name: str) -> dict[str, Any]:
        """Get a request of this model that can be sent as it is; its pictures are base64."""
        return self.send(endpoints.example(name))

    def segment(self, image: PictureLike, *, model: str | None = None, **options: Unpack[SegmentOptions]) -> SegmentOut:
        """Segment a picture.

        Args:
            image: Encoded bytes, a path, or a file opened for reading bytes.
            model: Which model; the gateway's default otherwise.
            options: As `fovea.api.mask.SegmentIn` describes them; `include` selects the parts of the answer.
        """
        return self.send(endpoints.segment(image, model, options))

    def chat(
        self, messages: Messages, *, model: str | None = None, system: str | None = None, **options: Unpack[ChatOptions]
    ) -> ChatAnswer:
        """Get the whole answer to a question or a conversation; `answer.text` is its text."""
        return self.send(endpoints.chat(build_messages(messages, system), model, options))

    def chat_stream(
        self, messages: Messages, *, model: str | None = None, system: str | None = None, **options: Unpack[ChatOptions]
    ) -> Iterator[ChatPiece]:
        """Stream an answer: `for piece in client.chat_stream("…"): print(piece.text, end="")`."""
        return self.stream(endpoints.chat_stream(build_messages(messages, system), model, options))

    def sweep(self, prompt: str | Sequence[Any], tokens: Sequence[str | int], **options: Unpack[SweepOptions]) -> Sweep:
        """Patch one activation of a prompt after another, and look at named next tokens after each patch.

        Args:
            prompt: The patched prompt: a text, its token ids, or messages.
            tokens: Next tokens to look at: texts of one token each, or ids.
            options: As `fovea.api.sweeps.SweepRequest` describes them.

        Returns:
            The grid, layer by layer; its columns are positions or heads.
        """
        return self.send(endpoints.sweep(prompt, tokens, options))

    def default_model(self, task: str) -> str:
        """Get the model that a task uses when none is named.

        Raises:
            NotFound: No served model does this task.
        """
        return endpoints.pick_default_model(task, self.models())

    def run(
        self,
        task: str,
        options: Mapping[str, Any] | None = None,
        *,
        pictures: Mapping[str, PictureLike] | None = None,
        accept: str | None = None,
    ) -> Any:
        """Run any task.

        Args:
            task: For example `classify`; `client.models()` lists what there is.
            options: The request, as its schema says; `model` selects a model.
            pictures: Encoded pictures by field; they are sent as they are, not as base64.
            accept: Another media type for the answer, for example `image/png`.

        Returns:
            The JSON answer as Python values, or bytes when `accept` asks for another media type. A request that
            the service queues as a job, because it takes long, is waited for.
        """
        answer = self.send(endpoints.allow_job(endpoints.task(task, options or {}, pictures or {}, accept=accept)))
        if not isinstance(answer, Job):
            return answer
        result = self.jobs.result(self.jobs.wait(answer.id).id)
        return result.json() if accept in {None, "application/json"} else result.content

    def send(self, call: Call[Answer]) -> Answer:
        """Send a call of `fovea.endpoints` and parse its answer."""
        with translate_errors(self.url):
            response = self._send_with_retries(call, stream=False)
        return call.parse(response)

    def stream(self, stream: StreamCall[Item]) -> Iterator[Item]:
        """Send a call that is answered by events; closing the iterator closes the connection."""
        with translate_errors(self.url), self._open_stream(stream.call) as response:
            for event in httpx2.EventSource(response):
                if stream.is_end(event):
                    return
                yield stream.parse_event(event)

    @contextmanager
    def _open_stream(self, call: Call[Any]) -> Iterator[httpx2.Response]:
        response = self._send_with_retries(call, stream=True)
        try:
            if response.is_error:
                response.read()
                raise parse_error(response)
            yield response
        finally:
            response.close()

    def _send_with_retries(self, call: Call[Any], *, stream: bool) -> httpx2.Response:
        attempt = 1
        while True:
            response = self._http.send(call.build_request(self._http), stream=stream)
            wait = self._retry_policy.wait_s(attempt, response)
            if wait is None:
                return response
            response.close()
            time.sleep(wait)
            attempt += 1


class Jobs:
    """Queued requests; available as `client.jobs`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def submit(
        self,
        task: str,
        options: Mapping[str, Any] | None = None,
        *,
        pictures: Mapping[str, PictureLike] | None = None,
        accept: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Queue what `Client.run` would run; the same idempotency key gives the same job."""
        call = endpoints.task(task, options or {}, pictures or {}, accept=accept)
        return self._client.send(endpoints.as_job(call, idempotency_key))

    def list(self, limit: int = 50, *, dead: bool = False) -> list[Job]:
        """List the caller's jobs, newest first; with `dead` only dead letters."""
        return self._client.send(endpoints.jobs(limit, dead=dead))

    def get(self, job_id: str) -> Job:
        """Get the current state of a job."""
        return self._client.send(endpoints.job(job_id))

    def events(self, job_id: str) -> Iterator[Job]:
        """Follow a job: its state now and after every change, until it is final; a broken stream is resumed."""
        while True:
            for job in self._client.stream(endpoints.job_events(job_id)):
                yield job
                if job.status in FINAL:
                    return
            time.sleep(STREAM_RESUME_S)

    def wait(self, job_id: str, *, timeout: float | None = None, on_change: Callable[[Job], None] | None = None) -> Job:
        """Wait until a job has ended, successfully or not.

        Raises:
            DeadlineExceeded: It has not ended after `timeout` seconds; it goes on running.
        """
        pauses, watcher = iterate_pauses(timeout), JobWatcher(on_change)
        while True:
            if watcher.update(job := self.get(job_id)):
                return job
            time.sleep(next(pauses))

    def result(self, job_id: str) -> JobResult:
        """Get the answer of a finished job.

        Raises:
            Conflict: It is not finished.
            FoveaError: The error that the request was answered with.
        """
        return self._client.send(endpoints.result(job_id))

    def cancel(self, job_id: str) -> Job:
        """Cancel a job, also while it runs; a finished job is left as it is."""
        return self._client.send(endpoints.cancel(job_id))

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again.

        Raises:
            Conflict: It neither failed nor was cancelled.
        """
        return self._client.send(endpoints.retry(job_id))
