"""The synchronous client. Carries out `Call`s over httpx2; what they say is `surface`'s."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2

from fovea import endpoints
from fovea.call import Call, StreamCall
from fovea.chat import ChatAnswer, ChatOptions, ChatPiece, Messages, build_messages
from fovea.errors import parse_error, translate_errors
from fovea.picture import PictureLike
from fovea.results import JobResult, ModelCard, SegmentOptions
from fovea.retry import STREAM_RESUME_S, JobWatcher, RetryPolicy, iterate_pauses
from fovea.transport import LOCAL, Address
from shared.api.job import FINAL, Job
from shared.api.mask import SegmentOut
from shared.api.model import ModelEntry

__all__ = ["Client", "Jobs"]

Answer = TypeVar("Answer")
Item = TypeVar("Item")


class Client:
    """Talks to a gateway; a context manager that is safe to share between threads.

    Args:
        url: Scheme, host and port of the gateway.
        key: API key, where it demands one.
        timeout: Seconds that one answer may take.
        patience: How often refusals that ask to come back (429, 503) are tried again.
        transport: For tests: what carries the requests instead of sockets.

    Raises:
        Malformed: The URL is none.

    Every method raises the classes of `shared.errors` for what the gateway refuses, and `NotReady` when none answers.
    """

    def __init__(
        self,
        url: str = LOCAL,
        *,
        key: str | None = None,
        timeout: float = 300.0,
        patience: RetryPolicy | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.url = url
        self.jobs = Jobs(self)
        self._patience = patience or RetryPolicy()
        self._http = httpx2.Client(**Address(url, key, timeout).options(), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._http.close()

    def models(self, task: str | None = None) -> list[ModelEntry]:
        """What is served, or what does one task; the default chat model comes first."""
        return self.send(endpoints.models(task))

    def model(self, name: str) -> ModelCard:
        """Everything about one model: facts, metrics, limits, tensors and the schema of its requests."""
        return self.send(endpoints.model(name))

    def example(self, name: str) -> dict[str, Any]:
        """A request of this model that can be sent as it is; its pictures are base64."""
        return self.send(endpoints.example(name))

    def segment(self, image: PictureLike, *, model: str | None = None, **options: Unpack[SegmentOptions]) -> SegmentOut:
        """Segment a picture.

        Args:
            image: Encoded bytes, a path, or a file opened for reading bytes.
            model: Which model; the gateway's default otherwise.
            options: As `shared.api.mask.SegmentIn` describes them; `include` chooses the forms of the answer.
        """
        return self.send(endpoints.segment(image, model, options))

    def chat(
        self, said: Messages, *, model: str | None = None, system: str | None = None, **options: Unpack[ChatOptions]
    ) -> ChatAnswer:
        """Answer a question or a conversation as a whole; `answer.text` is what was said."""
        return self.send(endpoints.chat(build_messages(said, system), model, options))

    def chat_stream(
        self, said: Messages, *, model: str | None = None, system: str | None = None, **options: Unpack[ChatOptions]
    ) -> Iterator[ChatPiece]:
        """Answer piece by piece: `for piece in client.chat_stream("…"): print(piece.text, end="")`."""
        return self.stream(endpoints.chat_stream(build_messages(said, system), model, options))

    def default(self, task: str) -> str:
        """The model that a task uses when none is named.

        Raises:
            NotFound: No served model does the task.
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
            options: The request, as its schema says; `model` chooses a model.
            pictures: Encoded pictures by field; they are sent as they are, not as base64.
            accept: Another form of the answer, for example `image/png`.

        Returns:
            The JSON answer as Python values, or bytes when `accept` asks for another form. Where the service makes a
            job of it because it takes long, the job is waited for.
        """
        found = self.send(endpoints.allow_job(endpoints.task(task, options or {}, pictures or {}, accept=accept)))
        if not isinstance(found, Job):
            return found
        result = self.jobs.result(self.jobs.wait(found.id).id)
        return result.json() if accept in {None, "application/json"} else result.content

    def send(self, call: Call[Answer]) -> Answer:
        """Carry out a call of `surface`."""
        with translate_errors(self.url):
            response = self._patient(call, stream=False)
        return call.answer(response)

    def stream(self, stream: StreamCall[Item]) -> Iterator[Item]:
        """Carry out a call that is answered by events; closing the iterator hangs up."""
        with translate_errors(self.url), self._opened(stream.call) as response:
            for event in httpx2.EventSource(response):
                if stream.ends(event):
                    return
                yield stream.item(event)

    @contextmanager
    def _opened(self, call: Call[Any]) -> Iterator[httpx2.Response]:
        response = self._patient(call, stream=True)
        try:
            if response.is_error:
                response.read()
                raise parse_error(response)
            yield response
        finally:
            response.close()

    def _patient(self, call: Call[Any], *, stream: bool) -> httpx2.Response:
        attempt = 1
        while True:
            response = self._http.send(call.request(self._http), stream=stream)
            wait = self._patience.wait(attempt, response)
            if wait is None:
                return response
            response.close()
            time.sleep(wait)
            attempt += 1


class Jobs:
    """Requests that are answered later. Reached as `client.jobs`."""

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
        """Queue what `Client.run` would run; the same key twice gives the same job."""
        call = endpoints.task(task, options or {}, pictures or {}, accept=accept)
        return self._client.send(endpoints.as_job(call, idempotency_key))

    def list(self, limit: int = 50, *, dead: bool = False) -> list[Job]:
        """The caller's jobs, newest first; with `dead` its dead letters."""
        return self._client.send(endpoints.jobs(limit, dead=dead))

    def get(self, job_id: str) -> Job:
        """A job as it stands."""
        return self._client.send(endpoints.job(job_id))

    def events(self, job_id: str) -> Iterator[Job]:
        """The job now and after every change, ending with its final state; a broken stream is taken up again."""
        while True:
            for job in self._client.stream(endpoints.job_events(job_id)):
                yield job
                if job.status in FINAL:
                    return
            time.sleep(STREAM_RESUME_S)

    def wait(self, job_id: str, *, timeout: float | None = None, on_change: Callable[[Job], None] | None = None) -> Job:
        """Wait for a job's end, whatever that is.

        Raises:
            DeadlineExceeded: It is not finished after `timeout` seconds; it goes on running.
        """
        pause, watch = iterate_pauses(timeout), JobWatcher(on_change)
        while True:
            if watch.finished(job := self.get(job_id)):
                return job
            time.sleep(next(pause))

    def result(self, job_id: str) -> JobResult:
        """The answer of a finished job.

        Raises:
            Conflict: It is not finished.
            FoveaError: What the request was answered with, when it failed.
        """
        return self._client.send(endpoints.result(job_id))

    def cancel(self, job_id: str) -> Job:
        """Cancel, also while running; a finished job is left as it is."""
        return self._client.send(endpoints.cancel(job_id))

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again.

        Raises:
            Conflict: It neither failed nor was cancelled.
        """
        return self._client.send(endpoints.retry(job_id))
