"""Replica handler: sends a job to a replica of its service over HTTP, and waits for the answer however long it takes.

Progress does not come this way: the replica writes it to Redis under the job's id (`shared.jobs.progress`).
"""

import asyncio

import httpx2

from fovea.api.replica import JOB_HEADER, ReplicaRecord
from fovea.errors import Cancelled, NotReady, TooLarge
from shared.jobs.queue import Payload, Result, Ticket
from shared.jobs.redis_client import cancel_tasks
from shared.serving.jobs.replica_directory import ReplicaDirectory
from shared.settings import Settings
from shared.telemetry import context, is_tracing, log

_CONNECT_S = 3.0
_LOOK_S = 0.5  # seconds between two looks for a replica that is ready
# Statuses of a replica that can't take the job now: an attempt asks again so often before it fails.
_BUSY = frozenset({429, 503})
_MAX_REFUSALS = 30
_BUSY_PAUSE_S = 1.0


class ReplicaJobHandler:
    """Runs jobs on the replicas of a directory. `close` it in the loop that runs it."""

    def __init__(self, replicas: ReplicaDirectory, settings: Settings) -> None:
        self._replicas = replicas
        self._client = httpx2.AsyncClient(
            trust_env=False,
            timeout=httpx2.Timeout(None, connect=_CONNECT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            headers={"accept-encoding": "identity", **settings.replica_credentials},
        )

    async def __call__(self, payload: Payload, ticket: Ticket) -> Result:
        """The replica's answer; streams are collected whole. See `shared.jobs.queue.Handler`.

        Raises Cancelled: the job was cancelled, which the replica learns from the closed connection; NotReady: the
        replica was lost while it ran the job; TooLarge: it ran out of memory over the job.
        """
        work = asyncio.create_task(self._send_until_taken(payload, ticket))
        stopped = asyncio.create_task(ticket.wait_until_cancelled())
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise Cancelled("The job was cancelled.")
        finally:
            await cancel_tasks(stopped, work)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
        await self._replicas.close()

    async def _send_until_taken(self, payload: Payload, ticket: Ticket) -> Result:
        refusals = 0
        while True:
            replica = await self._wait_for_replica(ticket)
            with self._replicas.occupy(replica):
                result = await self._send(replica, payload, ticket)
            if result is None:
                continue
            if result.status not in _BUSY or refusals == _MAX_REFUSALS:
                return result
            refusals += 1
            await asyncio.sleep(_BUSY_PAUSE_S)

    async def _wait_for_replica(self, ticket: Ticket) -> ReplicaRecord:
        if (replica := await self._replicas.pick()) is not None:
            return replica
        await ticket.progress(0.0, "waiting for a replica")
        while replica is None:
            await self._replicas.want()
            await asyncio.sleep(_LOOK_S)
            replica = await self._replicas.pick()
        return replica

    async def _send(self, replica: ReplicaRecord, payload: Payload, ticket: Ticket) -> Result | None:
        """The answer of one replica; None where it can't be reached, so that it has seen nothing of the job."""
        answer = asyncio.create_task(self._post(replica, payload, ticket))
        silent = asyncio.create_task(self._replicas.wait_until_silent(replica))
        try:
            await asyncio.wait({answer, silent}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise NotReady("The replica that ran this job hangs.", hint="Send the request again.", retry_after=1)
            return answer.result()
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            self._replicas.avoid(replica)
            return None
        except httpx2.TransportError as error:
            log("jobs").warning("lost a replica", job=ticket.id, replica=replica.id, reason=repr(error))
            raise await self._describe_loss(replica) from error
        finally:
            await cancel_tasks(answer, silent)

    async def _post(self, replica: ReplicaRecord, payload: Payload, ticket: Ticket) -> Result:
        headers = {**payload.headers, JOB_HEADER: f"{ticket.id} {ticket.attempt}"}
        headers.pop("x-fovea-deadline-ms", None)  # it was for the 202: a job has all the time it needs
        if is_tracing():
            headers["traceparent"] = context().traceparent
        request = self._client.build_request("POST", replica.http + payload.path, content=payload.body, headers=headers)
        answer = await self._client.send(request)
        return Result.of_answer(answer.status_code, answer.headers, answer.content)

    async def _describe_loss(self, replica: ReplicaRecord) -> NotReady | TooLarge:
        """The error for a connection that broke: the job's doing, where the replica died of memory over it alone."""
        if await self._replicas.has_died_of_memory(replica) and not self._replicas.is_shared(replica):
            detail = "A replica ran out of memory on this job."
            return TooLarge(detail, hint="Send less at a time, or raise FOVEA_REPLICA_MEMORY_BYTES of the replicas.")
        return NotReady("The replica was lost while it ran this job.", hint="Send the request again.", retry_after=1)
