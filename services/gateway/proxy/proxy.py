"""Reverse proxy: sends a request to a replica that the registry picks, and passes its answer on as it arrives.

A lost replica is handled by the retry policy until the first byte of an answer has been passed on. When the caller
hangs up, so does the connection to the replica, which stops the work. Knows nothing about keys, limits and jobs.
"""

import asyncio
import itertools
import sys
from types import TracebackType
from typing import Self

import aiohttp

from fovea.api.replica import HOLDS_HEADER
from fovea.errors import Cancelled, DeadlineExceeded, Fault, FoveaError, NotReady
from services.gateway.http.request_context import DEADLINE_GRACE_S, RequestContext
from services.gateway.metrics import VERSION_REQUESTS
from services.gateway.policy.memory_budget import MemoryBudget
from services.gateway.proxy.answer_watcher import build_answer_watcher
from services.gateway.proxy.http_client import UpstreamClient
from services.gateway.proxy.replayable_body import ReplayableBody
from services.gateway.proxy.response_relay import abort_response, relay_response
from services.gateway.proxy.retry import ReplicaRetryPolicy, RetryState, UpstreamLost, begin_attempt
from services.gateway.routing.affinity import find_affinity_key, held_key
from services.gateway.routing.replica import Dispatch, Replica
from services.gateway.routing.replica_registry import ReplicaRegistry
from services.gateway.routing.route_table import Route
from shared.asgi.body import SlowBody, read_content_length
from shared.asgi.shell import HttpCall
from shared.settings import Settings

WANTS_HEADER = "x-fovea-wants"
"""Header of a refusal: `respond-async` where the same request would be served as a job."""

MAX_BUFFERED_BODIES = 8
"""Memory for kept bodies of all requests, in bodies of the largest size."""

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


class QueueInstead(Exception):
    """A replica wants this request queued as a job; nothing of its answer has been passed on."""


class DisconnectGuard:
    """Cancels the block when the caller hangs up, and turns that into `Cancelled`."""

    __slots__ = ("_call", "_is_gone", "_task")

    def __init__(self, call: HttpCall) -> None:
        """Watch the caller of `call` from when its body has arrived."""
        self._call = call
        self._task: asyncio.Task[object] | None = None
        self._is_gone = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._call.on_cancel = self._cancel
        self._call.watch.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.watch.stop()
        self._call.on_cancel = None
        if self._is_gone and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            raise Cancelled("The caller went away.") from error

    def _cancel(self) -> None:
        if self._task is not None:
            self._is_gone = True
            self._task.cancel()


class Proxy:
    """Forwards requests to replicas."""

    def __init__(self, settings: Settings, registry: ReplicaRegistry, client: UpstreamClient) -> None:
        self._registry, self._client = registry, client
        self._retry = ReplicaRetryPolicy(registry)
        self.watcher = build_answer_watcher(registry, client)
        self.budget = MemoryBudget(MAX_BUFFERED_BODIES * settings.max_body_bytes, shared=settings.auth == "keys")

    def open_body(self, ctx: RequestContext, *, is_endless: bool = False) -> ReplayableBody:
        """Wrap the request's body, unread; of an endless one only a declared length is bounded, and nothing is kept.

        Raises TooLarge: it declares more bytes than the limit.
        """
        length = read_content_length(ctx.headers, ctx.body.limit)
        is_unbounded = is_endless and length is None
        if is_unbounded:
            ctx.body.limit = sys.maxsize
        budget = MemoryBudget(0) if is_unbounded else self.budget
        return ReplayableBody(ctx.body, length=length, budget=budget, tenant=ctx.caller.tenant)

    async def forward(self, ctx: RequestContext, route: Route, body: ReplayableBody) -> None:
        """Answer a request from a replica of the route's service, or by all of them where the route is a broadcast.

        Raises:
            NotReady: No replica is there, or came back in time.
            DeadlineExceeded: No replica answered in time.
            Cancelled: The caller went away.
            QueueInstead: A replica wants it queued, and it may be.
        """
        until = None if route.is_endless else ctx.deadline + DEADLINE_GRACE_S
        try:
            async with asyncio.timeout_at(until) as timer, DisconnectGuard(ctx):
                ctx.timer = None if until is None else timer
                await body.prefetch()
                self.watcher.begin(ctx, route, body)
                await (self._broadcast if route.is_broadcast else self._forward_with_retries)(ctx, route, body)
        except TimeoutError as error:
            if not ctx.status:
                raise _build_timeout(body) from error
            is_total = ctx.deadline >= ctx.ends_at
            await abort_response(ctx, DeadlineExceeded.build(is_stream=True, is_total=is_total))
        else:
            self.watcher.end(ctx, route, body)

    async def read_body(self, ctx: RequestContext, body: ReplayableBody) -> bytes:
        """Read all of the body into memory.

        Raises TooLarge: it outgrows the limit; SlowBody: it has not arrived by the deadline, or pauses too long.
        """
        try:
            async with asyncio.timeout_at(ctx.deadline):
                return await body.read_all()
        except TimeoutError as error:
            raise _build_timeout(body) from error

    async def _forward_with_retries(self, ctx: RequestContext, route: Route, body: ReplayableBody) -> None:
        is_idempotent = ctx.method in _IDEMPOTENT or not route.is_effectful
        key = find_affinity_key(ctx, route, body.head()) if route.is_affine else None
        state = RetryState(route.services[0], ctx.trace.request_id, ctx.deadline, key=key)
        attempts = itertools.count()

        async def attempt(replica: Replica) -> None:
            address = replica.record.http.removeprefix("http://")
            facts = {"http.request.method": ctx.method, "http.request.resend_count": next(attempts) or None}
            with begin_attempt(f"{ctx.method} {ctx.route}", replica, address, facts) as sent:
                await self._forward_once(ctx, replica, body, state, is_idempotent=is_idempotent)
                sent.set_attributes({"http.response.status_code": ctx.status})
                if ctx.status >= 400:
                    sent.fail(str(ctx.status))

        await self._retry.run(state, attempt)

    async def _forward_once(
        self, ctx: RequestContext, replica: Replica, body: ReplayableBody, state: RetryState, *, is_idempotent: bool
    ) -> None:
        """Send the request to one replica and pass its answer on."""
        attempt = Dispatch(replica)
        body.on_failure = attempt.abort
        try:
            async with attempt, self._client.request(ctx, replica, body) as response:
                if response.status == 503 and body.replayable and self._retry.has_untried(replica, state):
                    raise _build_lost(state, body, "it answers that it is not ready", is_unseen=True)
                if ctx.may_queue and body.replayable and response.headers.get(WANTS_HEADER) == "respond-async":
                    raise QueueInstead
                if response.status == 404 and ctx.route == "/v1/models/{name}/" and not ctx.model:
                    self._registry.routes.find_service(ctx.path.removeprefix("/v1/models/"))  # raises, naming all
                self._note_answer(ctx, replica, response)
                await relay_response(ctx, response)
        except (aiohttp.ClientError, TimeoutError) as error:
            has_broken = isinstance(error, aiohttp.ClientError)
            if not has_broken and not attempt.is_aborted:
                raise
            if body.error is not None:  # the body could not be read
                raise body.error from error
            if ctx.status:
                return await abort_response(ctx)
            is_unseen = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError)
            if is_unseen:
                self._registry.mark_suspect(replica)
            reason = f"{type(error).__name__}: {error}" if has_broken else "it hangs: its record is not renewed"
            raise _build_lost(state, body, reason, is_unseen=is_unseen, is_idempotent=is_idempotent) from error
        finally:
            body.on_failure = None

    def _note_answer(self, ctx: RequestContext, replica: Replica, response: aiohttp.ClientResponse) -> None:
        if replica.record.version:
            VERSION_REQUESTS.labels(replica.record.service, replica.record.version, str(response.status)).inc()
        if name := response.headers.get(HOLDS_HEADER):
            self._registry.remember_affinity(held_key(ctx.caller.tenant, name), replica)

    async def _broadcast(self, ctx: RequestContext, route: Route, body: ReplayableBody) -> None:
        """Send to every replica in turn; the caller gets the last answer, or the first that is an error."""
        replicas = self._registry.list_alive(route.services[0])
        await body.read_all()
        for index, replica in enumerate(replicas):
            try:
                async with self._client.request(ctx, replica, body) as response:
                    if response.status >= 400 or index == len(replicas) - 1:
                        return await relay_response(ctx, response)
            except aiohttp.ClientError as error:
                detail = f"The replica {replica.id} could not be reached; others may have done what was asked."
                raise NotReady(detail, hint="Send the request again.", retry_after=1) from error
        raise self._retry.build_not_ready(route.services[0])


def _build_lost(
    state: RetryState, body: ReplayableBody, reason: str, *, is_unseen: bool, is_idempotent: bool = True
) -> UpstreamLost:
    detail = f"The connection to {state.service} broke before it answered."
    is_harmless = is_unseen or is_idempotent
    answer: FoveaError = NotReady(detail, hint="Send the request again.", retry_after=1)
    if not is_harmless:  # clients send again what is not ready
        answer = Fault(detail, hint="The request may have had its effect: look before you send it again.")
    return UpstreamLost(reason, answer, is_unseen=is_unseen, may_repeat=body.replayable and is_harmless)


def _build_timeout(body: ReplayableBody) -> FoveaError:
    """The error for a passed deadline: the caller's fault where the body has not arrived."""
    if not body.complete:
        detail = "The body had not arrived when the deadline of the request passed (FOVEA_REQUEST_TIMEOUT_S)."
        slow = body.error = SlowBody(detail, hint="Send it faster.")
        return slow
    return DeadlineExceeded.build()
