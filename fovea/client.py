"""Synchronous client: sends the calls of `fovea.endpoints` with httpx2."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, Unpack

import httpx2

from fovea import endpoints
from fovea.api.job import FINAL, Job
from fovea.call import Answer, Call, Item, Part, Sends, StreamCall
from fovea.chat import ChatOptions, ChatPiece, Messages
from fovea.error_responses import parse_error, translate_errors
from fovea.lora import LoraAdapters
from fovea.picture import PictureLike
from fovea.retry import STREAM_RESUME_S, Absence, RetryPolicy, iterate_pauses
from fovea.steering import Captures, SteeringVectors
from fovea.transport import LOCAL, build_client_options


class ClientMethods:
    """Methods that both clients have."""

    models = Sends(endpoints.models)
    model = Sends(endpoints.model)
    example = Sends(endpoints.example)
    segment = Sends(endpoints.segment, reads_files=True)
    chat = Sends(endpoints.chat)
    sweep = Sends(endpoints.sweep)


class Client(ClientMethods):
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
        self._http = httpx2.Client(**build_client_options(url, key, timeout), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def chat_stream(
        self, messages: Messages, *, model: str | None = None, system: str | None = None, **options: Unpack[ChatOptions]
    ) -> Generator[ChatPiece, None, None]:
        """Stream an answer: `for piece in client.chat_stream("…"): print(piece.text, end="")`."""
        return self.stream(endpoints.chat_stream(messages, model=model, system=system, **options))

    def default_model(self, task: str) -> str:
        """Get the model that a task uses when none is named. Raises NotFound: no served model does this task."""
        return endpoints.pick_default_model(task, self.models())

    def run(
        self,
        task: str,
        options: Mapping[str, Any] | None = None,
        *,
        pictures: Mapping[str, PictureLike] | None = None,
        accept: str | None = None,
    ) -> Any:
        """Run any task, and wait for it where the service queues it as a job, because it takes long.

        Args:
            task: For example `classify`; `client.models()` lists what there is.
            options: The request, as its schema says; `model` selects a model.
            pictures: Encoded pictures by field; they are sent as they are, not as base64.
            accept: Another media type for the answer, for example `image/png`.

        Returns the JSON answer as Python values, or bytes for another media type or a stream.
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

    def stream(self, stream: StreamCall[Item]) -> Generator[Item, None, None]:
        """Send a call that is answered by events; closing the iterator closes the connection."""
        with translate_errors(self.url), self._open_stream(stream.call) as response:
            for event in httpx2.EventSource(response, max_event_size=None):
                if stream.is_end(event):
                    return
                if event.data:  # one without is none, by the standard
                    yield stream.parse_event(event)
            stream.finish()

    @contextmanager
    def _open_stream(self, call: Call[Any]) -> Iterator[httpx2.Response]:
        response = self._send_with_retries(call, stream=True)
        try:
            if not response.is_success:
                response.read()
                raise parse_error(response)
            yield response
        finally:
            response.close()

    def _send_with_retries(self, call: Call[Any], *, stream: bool) -> httpx2.Response:
        call, attempt = call.with_key(), 1
        while True:
            response = self._http.send(call.build_request(self._http), stream=stream)
            wait = self._retry_policy.wait_s(attempt, response)
            if wait is None:
                return response
            response.close()
            time.sleep(wait)
            attempt += 1


def submit(
    task: str,
    options: Mapping[str, Any] | None = None,
    *,
    pictures: Mapping[str, PictureLike] | None = None,
    accept: str | None = None,
    idempotency_key: str | None = None,
) -> Call[Job]:
    """Queue what `Client.run` would run; the same idempotency key gives the same job."""
    return endpoints.as_job(endpoints.task(task, options or {}, pictures or {}, accept=accept), idempotency_key)


class JobMethods:
    """Methods of queued requests that both clients have."""

    submit = Sends(submit, reads_files=True)
    list = Sends(endpoints.jobs)
    get = Sends(endpoints.job)
    result = Sends(endpoints.result)
    cancel = Sends(endpoints.cancel)
    delete = Sends(endpoints.delete)
    retry = Sends(endpoints.retry)


class Jobs(JobMethods, Part):
    """Queued requests; available as `client.jobs`."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self._stream = client.stream

    def events(self, job_id: str) -> Generator[Job, None, None]:
        """Follow a job: its state now and after every change, until it is final; a broken stream is taken up again."""
        absence = Absence()
        while True:
            with absence.bear():
                for job in self._stream(endpoints.job_events(job_id)):
                    absence.end()
                    yield job
                    if job.status in FINAL:
                        return
            time.sleep(STREAM_RESUME_S)

    def wait(self, job_id: str, *, timeout: float | None = None, on_change: Callable[[Job], None] | None = None) -> Job:
        """Wait until a job has ended, successfully or not, also over a restart of the gateway.

        Raises DeadlineExceeded: it has not ended after `timeout` seconds; it goes on running.
        """
        pauses, absence = iterate_pauses(timeout), Absence()
        job: Job | None = None
        while True:
            last = job
            with absence.bear():
                job = self.get(job_id)
            if job is not None and job != last:
                if on_change is not None:
                    on_change(job)
                if job.status in FINAL:
                    return job
            time.sleep(next(pauses))
