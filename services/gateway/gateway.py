"""`Gateway`: everything that one gateway process holds."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext

from fovea.errors import Unauthenticated
from services.gateway.batches.batch_records import BatchRecords
from services.gateway.batches.batch_service import BatchService
from services.gateway.batches.file_store import FileStore
from services.gateway.http.openapi import OpenApiDocument
from services.gateway.policy.audit_log import AuditLog
from services.gateway.policy.auth import BadKeys, KeyRing, read_credentials
from services.gateway.policy.caller import LOCAL, Caller
from services.gateway.policy.fair_queue import FairQueue
from services.gateway.policy.oidc import TokenVerifier
from services.gateway.policy.quotas import RateLimiter
from services.gateway.policy.revocation import Revocations
from services.gateway.proxy.http_client import UpstreamClient
from services.gateway.proxy.proxy import Proxy
from services.gateway.routes.model_list import ModelIndex
from services.gateway.routing.replica_registry import ReplicaRegistry
from shared.jobs.redis_queue import RedisJobQueue
from shared.jobs.usage_ledger import UsageLedger
from shared.settings import Settings
from shared.storage import open_object_store


class Gateway:
    """Everything that one gateway process holds; nothing is opened yet."""

    def __init__(self, settings: Settings, queue: RedisJobQueue | None) -> None:
        self.settings, self.queue = settings, queue
        self.registry, self.client = ReplicaRegistry(settings), UpstreamClient(settings.replica_credentials)
        self.registry.ask = self.client.is_serving
        self.proxy = Proxy(settings, self.registry, self.client)
        self.keys, self.bad_keys, self.tokens = KeyRing(settings.keys_path), BadKeys(), TokenVerifier(settings)
        self.revocations = Revocations(self.keys, settings.redis_url if settings.auth == "keys" else None)
        self.audit = AuditLog(settings.audit_path)
        self.limits, self.fair = RateLimiter(settings), FairQueue(settings, self.registry)
        self.usage = UsageLedger(settings.redis_url)
        self.models = ModelIndex(self.registry, self.client)
        self.document = OpenApiDocument(self.registry, self.client, keys=settings.auth == "keys")
        objects = open_object_store(settings)
        self.files = FileStore(objects, settings.file_quota_bytes)
        self.batches = BatchService(BatchRecords(objects), self.files, settings.job_ttl_s)
        self.stopping: list[asyncio.Task[None]] = []
        self.is_stopping = asyncio.Event()
        self.followed: Counter[str] = Counter()  # streams of jobs' events, by tenant

    async def authenticate(self, headers: Mapping[bytes, bytes], address: str) -> Caller:
        """Find the caller by the key or the token in the headers of a request from an address.

        Raises:
            Unauthenticated: There is none, or it is not valid.
            RateLimited: It is not valid, as many before it from this address.
            NotReady: The issuer of a token can't be reached.
        """
        if self.settings.auth == "insecure-local":
            return LOCAL
        credential = read_credentials(headers)
        try:
            if credential is not None and self.tokens.is_token(credential):
                return await self.tokens.authenticate(credential)
            return self.keys.authenticate(credential)
        except Unauthenticated:
            if credential is not None:
                self.bad_keys.note(address)
            raise

    def find_place(self, caller: Caller, service: str, deadline: float) -> AbstractAsyncContextManager[None]:
        """The caller's place at a service, where it has to wait for one until `deadline`; a local caller needs none."""
        return nullcontext() if self.settings.auth == "insecure-local" else self.fair.slot(caller, service, deadline)

    async def stop(self) -> None:
        """Close all connections, once the gRPC server has stopped."""
        await asyncio.gather(*self.stopping)
        await self.proxy.watcher.stop()
        await self.registry.stop()
        await self.client.stop()
        await self.revocations.stop()
        await self.limits.stop()
        await self.usage.stop()
