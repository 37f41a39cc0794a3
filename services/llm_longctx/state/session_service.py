"""Sessions of models with a memory: opened, gone on with, forked, moved, rolled back and forgotten.

What is stored of a version is the model's state and what the request behind it did to the memory. Knows the store and
the voices that read states; knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
from dataclasses import asdict, astuple, dataclass

from services.llm_longctx.serving.adapters.titans import TitansAdapter
from services.llm_longctx.serving.request_state import Remembered, TokenUpdate
from services.llm_longctx.state.session_store import KEPT, Head, SessionStore
from shared import figures
from shared.api.sessions import LearntToken, Session, SessionList, SurpriseTrace
from shared.errors import Conflict, InvalidOption, NotFound

__all__ = ["Sessions", "Version"]

_SIZE = struct.Struct("<I")
_COMMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a session: the state, the tokens that it has read, and what the last of them did to it."""

    state: bytes
    tokens: int
    learnt: tuple[TokenUpdate, ...] = ()

    def pack(self) -> bytes:
        """As bytes: length of the header, header (JSON), state."""
        rows = [[one.token, *(float(f"{x:.5g}") for x in astuple(one)[1:])] for one in self.learnt]
        header = json.dumps({"tokens": self.tokens, "learnt": rows}, separators=(",", ":")).encode()
        return _SIZE.pack(len(header)) + header + self.state

    @classmethod
    def unpack(cls, data: bytes) -> Version:
        """The version that these bytes are."""
        (size,) = _SIZE.unpack_from(data)
        facts = json.loads(data[_SIZE.size : _SIZE.size + size])
        return cls(data[_SIZE.size + size :], facts["tokens"], tuple(TokenUpdate(*row) for row in facts["learnt"]))


class Sessions:
    """The sessions of one tenant."""

    def __init__(self, store: SessionStore, tenant: str) -> None:
        self._store, self._tenant = store, tenant

    async def create(self, voice: TitansAdapter) -> Session:
        """Open a session that remembers nothing yet."""
        state = await asyncio.to_thread(lambda: voice.packed(voice.net.session(1), 0))
        return await self._new(voice.name, voice.digest, Version(state, 0))

    async def get(self, name: str) -> Session:
        """What is known of a session.

        Raises:
            NotFound: The tenant has no such session.
        """
        return _told(await self.head(name))

    async def recent(self, limit: int, after: str | None = None) -> SessionList:
        """Sessions, newest first, from behind `after` on.

        Raises:
            NotFound: The tenant has no session `after`.
        """
        heads = await self._store.recent(self._tenant, limit + 1, after)
        return SessionList(data=[_told(head) for head in heads[:limit]], has_more=len(heads) > limit)

    async def head(self, name: str) -> Head:
        """The same, as it is stored."""
        return await self._store.head(self._tenant, name)

    async def version(self, head: Head, number: int | None = None) -> Version:
        """A version of a session; left out, the newest."""
        if number is not None and not head.version - KEPT < number <= head.version:
            hint = f"The last {KEPT} versions are kept."
            raise NotFound(f"The session {head.id} has no version {number} any more.", hint=hint, field="version")
        return Version.unpack(await self._store.read(self._tenant, head.id, head.version if number is None else number))

    async def delete(self, name: str) -> None:
        """Forget a session, its versions and its answers."""
        await self._store.delete(self._tenant, name)

    async def fork(self, name: str) -> Session:
        """A session that goes its own way from here."""
        head = await self.head(name)
        return await self._new(head.model, head.weights, await self.version(head))

    async def load(self, name: str, data: bytes, voice: TitansAdapter) -> Session:
        """Let a session go on from an exported state, as its next version.

        Raises:
            Malformed: The bytes are no state.
            Conflict: They are of other weights, or somebody else has written.
        """
        head = await self.head(name)
        session = await asyncio.to_thread(voice.given, data)
        state = await asyncio.to_thread(voice.packed, session, head.version + 1)
        return await self._write(head, Version(state, session.index))

    async def rollback(self, name: str, number: int) -> Session:
        """Go back: an earlier version is written again as the newest, so that nothing is lost by it."""
        head = await self.head(name)
        told = await self._write(head, await self.version(head, number))
        figures.rolled_back(head.model)
        return told

    async def surprise(self, name: str, number: int | None, voice: TitansAdapter) -> SurpriseTrace:
        """What the request behind a version did to the memory, token by token."""
        head = await self.head(name)
        learnt = (await self.version(head, number)).learnt
        tokens = [LearntToken(text=voice.tokenizer.token_text(one.token), **asdict(one)) for one in learnt]
        mean = sum(one.loss for one in learnt) / len(learnt) if learnt else None
        return SurpriseTrace(id=name, version=head.version if number is None else number, mean=mean, tokens=tokens)

    async def remembered(self, name: str, voice: TitansAdapter, body: str, once: str | None) -> Remembered | str:
        """What a request goes on from; or the answer that this very request was given before.

        Args:
            name: The session.
            voice: The model that the request asks.
            body: Digest of what is asked.
            once: Idempotency key of the request.

        Raises:
            NotFound: The tenant has no such session.
            InvalidOption: It is another model's.
            Conflict: It is of other weights, or the key was used for something else.
        """
        head = await self.head(name)
        if head.model != voice.name:
            detail = f"The session {name} belongs to {head.model}, not to {voice.name}."
            raise InvalidOption(detail, field="session_id")
        if once and (kept := await self._store.answered(self._tenant, name, once)) is not None:
            known = json.loads(kept)
            if known["body"] != body:
                raise Conflict("This idempotency key was used for another request.", hint="Use a new one.")
            answer: str = known["answer"]
            return answer
        if head.weights != voice.digest:
            detail = f"The session {name} was written by other weights of {head.model}."
            raise Conflict(detail, hint="Its model was loaded anew: start a new session.")
        version, loop = await self.version(head), asyncio.get_running_loop()

        def commit(session: Remembered, answer: str) -> None:
            kept = Version(session.after, session.tokens, tuple(session.learnt))
            told = json.dumps({"body": body, "answer": answer}).encode()
            writing = self._write(head, kept, once=once, answer=told)
            asyncio.run_coroutine_threadsafe(writing, loop).result(_COMMIT_S)

        return Remembered(name, head.version, version.state, commit)

    async def _new(self, model: str, weights: str, version: Version) -> Session:
        state = version.pack()
        return _told(await self._store.create(self._tenant, model, weights, state, version.tokens, len(version.state)))

    async def _write(self, head: Head, version: Version, *, once: str | None = None, answer: bytes = b"") -> Session:
        try:
            state, held = version.pack(), len(version.state)
            await self._store.write(self._tenant, head, state, version.tokens, held, once=once, answer=answer)
        except Conflict:
            figures.lock_conflict(head.model)
            raise
        return _told(await self.head(head.id))


def body_digest(asked: str) -> str:
    """What a request is recognised by."""
    return hashlib.sha256(asked.encode()).hexdigest()


def _told(head: Head) -> Session:
    kept = range(max(0, head.version - KEPT + 1), head.version + 1)
    return Session(
        id=head.id,
        model=head.model,
        version=head.version,
        versions=list(kept),
        tokens=head.tokens,
        state_bytes=head.held,
        created=int(head.created),
        updated=int(head.updated),
    )
