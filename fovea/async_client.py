"""Asynchronous client: `Client`, method for method, for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, Unpack

import httpx2

from fovea import endpoints
from fovea.api.job import FINAL, Job
from fovea.call import Answer, AsyncPart, Call, Item, StreamCall
from fovea.chat import ChatOptions, ChatPiece, Messages
from fovea.client import ClientMethods, JobMethods
from fovea.error_responses import parse_error, translate_errors
from fovea.lora import AsyncLoraAdapters
from fovea.picture import PictureLike
from fovea.retry import STREAM_RESUME_S, Absence, RetryPolicy, iterate_pauses
from fovea.steering import AsyncCaptures, AsyncSteeringVectors
from fovea.transport import LOCAL, build_client_options


class AsyncClient(ClientMethods):
    """Talks to a gateway from asyncio; an async context manager. Arguments and errors are those of `Client`."""

    def __init__(
        self,
        url: str = LOCAL,
        *,
        key: str | None = None,
        timeout: float = 300.0,
        retry_policy: RetryPolicy | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self.jobs = AsyncJobs(self)
        self.steering_vectors = AsyncSteeringVectors(self)
        self.lora_adapters = AsyncLoraAdapters(self)
        self.captures = AsyncCaptures(self)
        self._retry_policy = retry_policy or RetryPolicy()
        self._http = httpx2.AsyncClient(**build_client_options(url, key, timeout), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def chat_stream(
        self, messages: Messages, *, model: str | None = None, system: str | None = None, **options: Unpack[ChatOptions]
    ) -> AsyncGenerator[ChatPiece, None]:
        """See `Client.chat_stream`; use it with `async for`."""
        return self.stream(endpoints.chat_stream(messages, model=model, system=system, **options))

    async def default_model(self, task: str) -> str:
        """See `Client.default_model`."""
        return endpoints.pick_default_model(task, await self.models())

    async def run(
        self,
        task: str,
        options: Mapping[str, Any] | None = None,
        *,
        pictures: Mapping[str, PictureLike] | None = None,
        accept: str | None = None,
    ) -> Any:
        """See `Client.run`."""
        call = await asyncio.to_thread(endpoints.task, task, options or {}, pictures or {}, accept=accept)
        answer = await self.send(endpoints.allow_job(call))
        if not isinstance(answer, Job):
            return answer
        result = await self.jobs.result((await self.jobs.wait(answer.id)).id)
        return result.json() if accept in {None, "application/json"} else result.content

    async def send(self, call: Call[Answer]) -> Answer:
        """Send a call of `fovea.endpoints` and parse its answer."""
        with translate_errors(self.url):
            response = await self._send_with_retries(call, stream=False)
        return call.parse(response)

    async def stream(self, stream: StreamCall[Item]) -> AsyncGenerator[Item, None]:
        """Send a call that is answered by events; closing the iterator closes the connection."""
        with translate_errors(self.url):
            async with self._open_stream(stream.call) as response:
                async for event in httpx2.EventSource(response, max_event_size=None):
                    if stream.is_end(event):
                        return
                    if event.data:  # one without is none, by the standard
                        yield stream.parse_event(event)
                stream.finish()

    @asynccontextmanager
    async def _open_stream(self, call: Call[Any]) -> AsyncIterator[httpx2.Response]:
        response = await self._send_with_retries(call, stream=True)
        try:
            if not response.is_success:
                await response.aread()
                raise parse_error(response)
            yield response
        finally:
            await response.aclose()

    async def _send_with_retries(self, call: Call[Any], *, stream: bool) -> httpx2.Response:
        call, attempt = call.with_key(), 1
        while True:
            response = await self._http.send(call.build_request(self._http), stream=stream)
            wait = self._retry_policy.wait_s(attempt, response)
            if wait is None:
                return response
            await response.aclose()
            await asyncio.sleep(wait)
            attempt += 1


class AsyncJobs(JobMethods, AsyncPart):
    """Queued requests; available as `client.jobs`, with the methods of `Jobs`."""

    def __init__(self, client: AsyncClient) -> None:
        super().__init__(client)
        self._stream = client.stream

    async def events(self, job_id: str) -> AsyncGenerator[Job, None]:
        """See `Jobs.events`."""
        absence = Absence()
        while True:
            with absence.bear():
                async for job in self._stream(endpoints.job_events(job_id)):
                    absence.end()
                    yield job
                    if job.status in FINAL:
                        return
            await asyncio.sleep(STREAM_RESUME_S)

    async def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # the job goes on, so this is not a cancellation
        on_change: Callable[[Job], None] | None = None,
    ) -> Job:
        """See `Jobs.wait`."""
        pauses, absence = iterate_pauses(timeout), Absence()
        job: Job | None = None
        while True:
            last = job
            with absence.bear():
                job = await self.get(job_id)
            if job is not None and job != last:
                if on_change is not None:
                    on_change(job)
                if job.status in FINAL:
                    return job
            await asyncio.sleep(next(pauses))
