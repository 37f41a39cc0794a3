"""Shadow traffic: copies of answered requests go to a version that answers nobody, and its answers are compared.

A copy is sent after the caller has its answer, so nobody waits for it; few are under way at once, and what is beyond is
dropped and counted. Answers are compared one at a time; those that are too large are skipped and counted. Copies are of
a tenant of their own: what they store is not a caller's. Knows nothing about plans.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from prometheus_client import Counter, Histogram

from fovea.api.replica import SCOPES_HEADER
from fovea_rollouts.answer_agreement import TooLargeToCompare, WholeAnswer, measure_agreement
from fovea_rollouts.traffic_plans import TrafficPlans
from services.gateway.http.request_context import AnswerRecorder, RequestContext, build_request_headers
from services.gateway.policy.caller import KeyScope
from services.gateway.proxy.answer_watcher import AnswerWatcher
from services.gateway.proxy.http_client import UpstreamClient
from services.gateway.proxy.replayable_body import ReplayableBody
from services.gateway.routing.affinity import MAX_TOKENS, find_affinity_key
from services.gateway.routing.json_peek import has_json_field
from services.gateway.routing.replica_registry import ReplicaRegistry
from services.gateway.routing.route_table import Route
from shared.telemetry import log

MAX_ANSWER_BYTES = 8 * 2**20
"""Answers of more are not compared."""

MAX_COPIES = 4
"""Copies under way at once in one gateway."""

TIMEOUT_S = 120.0

SHADOW_TENANT = "_shadow"
"""Tenant of all copies: a name that no key and no token can have (`TENANT_PATTERN`), so nobody reads what they say."""

SHADOW_SCOPE: KeyScope = "infer"
"""All that a copy may, whatever its caller's key allows."""

_LASTING_FIELDS = frozenset({"store", "interventions", "capture"})
"""Fields of a body with which a request leaves something behind, or looks inside a model."""

_SHADOWS = Counter(
    "fovea_shadow_requests_total",
    "Requests drawn for a shadow: compared, incomparable, failed, skipped as too large, or dropped as too many.",
    ["service", "version", "outcome"],
)
_SHADOW_SECONDS = Histogram(
    "fovea_shadow_seconds",
    "Whole request at a shadow.",
    ["service", "version"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
_AGREEMENT = Histogram(
    "fovea_shadow_agreement",
    "Agreement of a shadow's answer with the one that was given: text, boxes, mask, picture or json.",
    ["service", "version", "kind"],
    buckets=(0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.999, 1),
)


def count_shadow(service: str, version: str, outcome: str) -> None:
    """Count a request that was to be copied to a shadow."""
    _SHADOWS.labels(service, version, outcome).inc()


def observe_shadow(service: str, version: str, seconds: float, agreement: Mapping[str, float]) -> None:
    """Observe how long a shadow took, and by kind how far it agrees."""
    _SHADOW_SECONDS.labels(service, version).observe(seconds)
    for kind, share in agreement.items():
        _AGREEMENT.labels(service, version, kind).observe(share)


@dataclass(slots=True)
class ShadowRecorder(AnswerRecorder):
    """Keeps an answer that a shadow's is compared with."""

    version: str = ""

    def whole(self) -> WholeAnswer:
        """Return the answer."""
        return WholeAnswer(self.content_type, b"".join(self.chunks))


class ShadowTraffic(AnswerWatcher):
    """Sends copies. Belongs to one event loop."""

    def __init__(self, registry: ReplicaRegistry, client: UpstreamClient) -> None:
        super().__init__(registry, client)
        self._registry, self._client = registry, client
        self._under_way: set[asyncio.Task[None]] = set()
        self._comparing = asyncio.Lock()  # a comparison holds pictures

    def begin(self, ctx: RequestContext, route: Route, body: ReplayableBody) -> None:
        """Record the answer of a request that is to be copied: one that leaves nothing behind, and names no state.

        A compressed body can't be looked into, so it is not copied.
        """
        if (
            ctx.method != "POST"
            or b"content-encoding" in ctx.headers
            or route.is_effectful
            or route.is_broadcast
            or route.is_endless
        ):
            return
        plans = self._registry.versions
        version = plans.draw_shadow(route.services[0]) if isinstance(plans, TrafficPlans) else None
        if version is None or (whole := body.whole()) is None:
            return
        key = find_affinity_key(ctx, route, whole) if route.is_affine else None
        if (key is None or not key.is_state) and not has_json_field(whole, _LASTING_FIELDS, MAX_TOKENS):
            ctx.recorder = ShadowRecorder(MAX_ANSWER_BYTES, version=version)

    def end(self, ctx: RequestContext, route: Route, body: ReplayableBody) -> None:
        """Send the copy of a recorded request, without waiting for it."""
        recorder, whole = ctx.recorder, body.whole()
        if not isinstance(recorder, ShadowRecorder) or whole is None or ctx.status != 200:
            return
        if not recorder.is_whole:
            count_shadow(route.services[0], recorder.version, "skipped")
            return
        if len(self._under_way) >= MAX_COPIES:
            count_shadow(route.services[0], recorder.version, "dropped")
            return
        task = asyncio.create_task(self._compare(ctx, route.services[0], whole, recorder))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def stop(self) -> None:
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _compare(self, ctx: RequestContext, service: str, body: bytes, recorder: ShadowRecorder) -> None:
        outcome = "failed"
        try:
            async with asyncio.timeout(TIMEOUT_S):
                theirs, seconds = await self._fetch(ctx, service, body, recorder.version)
            if theirs is not None:
                async with self._comparing:
                    agreement = await asyncio.to_thread(measure_agreement, recorder.whole(), theirs)
                observe_shadow(service, recorder.version, seconds, agreement)
                outcome = "compared" if agreement else "incomparable"
        except TooLargeToCompare as error:
            outcome = "skipped"
            log().info("answers not compared", service=service, version=recorder.version, reason=str(error))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log().info("a shadow did not answer", service=service, version=recorder.version, reason=str(error))
        except Exception as error:  # noqa: BLE001  # answers of a version on trial may be anything
            outcome = "incomparable"
            log().info("answers not compared", service=service, version=recorder.version, reason=repr(error))
        count_shadow(service, recorder.version, outcome)

    async def _fetch(
        self, ctx: RequestContext, service: str, body: bytes, version: str
    ) -> tuple[WholeAnswer | None, float]:
        """The shadow's answer, None where it is not a 200, and the seconds that it took."""
        replica = self._registry.pick_version(service, version)
        if replica is None:
            return None, 0.0
        headers = build_request_headers(ctx)
        headers["x-fovea-tenant"] = SHADOW_TENANT
        headers[SCOPES_HEADER] = SHADOW_SCOPE
        headers["idempotency-key"] = ctx.generated_key  # callers' own keys may be alike
        headers["x-fovea-deadline-ms"] = str(int(1000 * TIMEOUT_S))
        began = time.perf_counter()
        async with self._client.request_copy(ctx, replica, headers, body) as response:
            if response.status != 200:
                return None, 0.0
            answer = WholeAnswer(response.content_type, await _read_bounded(response))
        return answer, time.perf_counter() - began


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise TooLargeToCompare(f"more than {MAX_ANSWER_BYTES:,} bytes")
        chunks.append(chunk)
    return b"".join(chunks)
