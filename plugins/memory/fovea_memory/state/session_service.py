"""Session service: create, continue, fork, import, roll back and delete sessions of models with a memory.

A stored version holds the model's state and the trace of the request behind it. Knows the session store and the Titans
adapter that reads states; knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
from dataclasses import asdict, astuple, dataclass

from fovea.api.sessions import LearntToken, Session, SessionList, SurpriseTrace
from fovea.errors import Conflict, InvalidOption, Malformed, NotFound
from fovea_memory import metrics
from fovea_memory.adapters.titans import TitansAdapter
from fovea_memory.request_state import SessionTransaction, TokenUpdate
from fovea_memory.state.session_store import KEPT_VERSIONS, SessionRecord, SessionStore

_HEADER_LENGTH = struct.Struct("<I")
_COMMIT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class SessionVersion:
    """One version of a session: the state, the tokens it has read, and the updates by its last request's tokens."""

    state: bytes
    tokens: int
    updates: tuple[TokenUpdate, ...] = ()

    def pack(self) -> bytes:
        """Serialise: length of the header, header (JSON), state."""
        rows = [[update.token, *(float(f"{x:.5g}") for x in astuple(update)[1:])] for update in self.updates]
        header = json.dumps({"tokens": self.tokens, "learnt": rows}, separators=(",", ":")).encode()
        return _HEADER_LENGTH.pack(len(header)) + header + self.state

    @classmethod
    def unpack(cls, data: bytes) -> SessionVersion:
        """Deserialise what `pack` returned."""
        (size,) = _HEADER_LENGTH.unpack_from(data)
        begin = _HEADER_LENGTH.size + size
        header = json.loads(data[_HEADER_LENGTH.size : begin])
        return cls(data[begin:], header["tokens"], tuple(TokenUpdate(*row) for row in header["learnt"]))


class SessionService:
    """The sessions of one tenant."""

    def __init__(self, store: SessionStore, tenant: str) -> None:
        self._store, self._tenant = store, tenant

    async def create(self, adapter: TitansAdapter) -> Session:
        """Create a session with an empty memory."""
        state = await asyncio.to_thread(lambda: adapter.serialize(adapter.net.session(1), 0))
        return await self._create(adapter.name, adapter.digest, SessionVersion(state, 0))

    async def get(self, name: str) -> Session:
        """Describe a session.

        Raises:
            NotFound: The tenant has no such session.
        """
        return _to_session(await self.get_record(name))

    async def list_newest(self, limit: int, after: str | None = None) -> SessionList:
        """Sessions, newest first; with `after` only those older than it.

        Raises:
            NotFound: The tenant has no session `after`.
        """
        records = await self._store.list_newest(self._tenant, limit + 1, after)
        return SessionList(data=[_to_session(record) for record in records[:limit]], has_more=len(records) > limit)

    async def get_record(self, name: str) -> SessionRecord:
        """The stored metadata of a session."""
        return await self._store.get(self._tenant, name)

    async def read_version(self, record: SessionRecord, number: int | None = None) -> SessionVersion:
        """A version of a session, by default the newest."""
        if number is not None and not record.version - KEPT_VERSIONS < number <= record.version:
            hint = f"The last {KEPT_VERSIONS} versions are kept."
            raise NotFound(f"The session {record.id} has no version {number} any more.", hint=hint, field="version")
        number = record.version if number is None else number
        return SessionVersion.unpack(await self._store.read_version(self._tenant, record.id, number))

    async def delete(self, name: str) -> None:
        """Delete a session, its versions and its answers."""
        await self._store.delete(self._tenant, name)

    async def fork(self, name: str) -> Session:
        """Create a session that begins with this one's newest version."""
        record = await self.get_record(name)
        return await self._create(record.model, record.weights, await self.read_version(record))

    async def import_state(self, name: str, data: bytes, adapter: TitansAdapter) -> Session:
        """Write an exported state as the session's next version.

        Raises:
            Malformed: There are no bytes, or they are no state.
            Conflict: They are of other weights, or another request has written.
        """
        if not data:
            raise Malformed("The state is empty.", hint="Send the file that `export` wrote.", field="state")
        record = await self.get_record(name)
        session = await asyncio.to_thread(adapter.import_state, data)
        state = await asyncio.to_thread(adapter.serialize, session, record.version + 1)
        return await self._write(record, SessionVersion(state, session.index))

    async def rollback(self, name: str, number: int) -> Session:
        """Write an earlier version again as the newest, so that the versions after it are not lost."""
        record = await self.get_record(name)
        session = await self._write(record, await self.read_version(record, number))
        metrics.ROLLBACKS.labels(record.model).inc()
        return session

    async def trace_surprise(self, name: str, number: int | None, adapter: TitansAdapter) -> SurpriseTrace:
        """The memory updates of the request behind a version, token by token."""
        record = await self.get_record(name)
        updates = (await self.read_version(record, number)).updates
        tokens = [LearntToken(text=adapter.tokenizer.token_text(one.token), **asdict(one)) for one in updates]
        mean = sum(one.loss for one in updates) / len(updates) if updates else None
        return SurpriseTrace(id=name, version=record.version if number is None else number, mean=mean, tokens=tokens)

    async def begin(
        self, name: str, adapter: TitansAdapter, request_digest: str, idempotency_key: str | None
    ) -> SessionTransaction | str:
        """Begin a request of a session; for a repeated one return the answer (JSON) that the first one got.

        Args:
            name: The session.
            adapter: The model that the request names.
            request_digest: Digest of the request.
            idempotency_key: Idempotency key of the request.

        Raises:
            NotFound: The tenant has no such session.
            InvalidOption: It belongs to another model.
            Conflict: It is of other weights, or the key was used for another request.
        """
        record = await self.get_record(name)
        if record.model != adapter.name:
            detail = f"The session {name} belongs to {record.model}, not to {adapter.name}."
            raise InvalidOption(detail, field="session_id")
        if idempotency_key and (answer := await self._find_answer(name, idempotency_key, request_digest)) is not None:
            return answer
        if record.weights != adapter.digest:
            detail = f"The session {name} was written by other weights of {record.model}."
            raise Conflict(detail, hint="Its model was loaded anew: start a new session.")
        version = await self.read_version(record)

        async def write(transaction: SessionTransaction, answer: str) -> None:
            after = SessionVersion(transaction.new_state, transaction.tokens, tuple(transaction.updates))
            stored = json.dumps({"body": request_digest, "answer": answer}).encode()
            async with asyncio.timeout(_COMMIT_TIMEOUT_S):
                await self._write(record, after, idempotency_key=idempotency_key, answer=stored)

        return SessionTransaction(name, record.version, version.state, write)

    async def _find_answer(self, name: str, idempotency_key: str, request_digest: str) -> str | None:
        stored = await self._store.find_answer(self._tenant, name, idempotency_key)
        if stored is None:
            return None
        known = json.loads(stored)
        if known["body"] != request_digest:
            raise Conflict("This idempotency key was used for another request.", hint="Use a new one.")
        answer: str = known["answer"]
        return answer

    async def _create(self, model: str, weights: str, version: SessionVersion) -> Session:
        state_bytes = len(version.state)
        record = await self._store.create(self._tenant, model, weights, version.pack(), version.tokens, state_bytes)
        return _to_session(record)

    async def _write(
        self, record: SessionRecord, version: SessionVersion, *, idempotency_key: str | None = None, answer: bytes = b""
    ) -> Session:
        try:
            await self._store.write_version(
                self._tenant,
                record,
                version.pack(),
                version.tokens,
                len(version.state),
                idempotency_key=idempotency_key,
                answer=answer,
            )
        except Conflict:
            metrics.WRITE_CONFLICTS.labels(record.model).inc()
            raise
        return _to_session(await self.get_record(record.id))


def digest_request(body: str) -> str:
    """Digest by which a repeated request is recognised."""
    return hashlib.sha256(body.encode()).hexdigest()


def _to_session(record: SessionRecord) -> Session:
    versions = list(range(max(0, record.version - KEPT_VERSIONS + 1), record.version + 1))
    times = {"created": int(record.created), "updated": int(record.updated)}
    return Session(**asdict(record) | times, versions=versions)
