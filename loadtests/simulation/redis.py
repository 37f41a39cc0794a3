"""A Redis of the simulation: the commands of the registry, heartbeats and rate limits, each at its measured cost.

One thread serves one command after another, as Redis does. Also what is wanted of `limits`' storage.
"""

import fnmatch
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from redis.exceptions import ConnectionError as RedisAway

from loadtests.simulation.clock import Processor, SimulatedClock

NETWORK_S = 0.0003
"""Assumed: there and back between two machines of a data centre."""


@dataclass(frozen=True, slots=True)
class RedisCosts:
    """Processor seconds of Redis: of a command, of a renewal, of a record of a list that is read, of a rate's count."""

    command: float
    renewal: float
    record: float
    count: float


@dataclass(slots=True)
class SimulatedRedis:
    """The server: what it holds, its processor, and what it was asked."""

    clock: SimulatedClock
    costs: RedisCosts
    is_up: bool = True
    hashes: defaultdict[str, dict[bytes, bytes]] = field(default_factory=lambda: defaultdict(dict))
    windows: dict[str, tuple[int, float]] = field(default_factory=dict)
    commands: Counter[str] = field(default_factory=Counter)
    bytes_sent: int = 0
    processor: Processor = field(init=False)

    def __post_init__(self) -> None:
        self.processor = Processor(self.clock)

    async def serve(self, command: str, seconds: float) -> None:
        """Take a command's turn.

        Raises:
            RedisAway: It is not up.
        """
        if not self.is_up:
            raise RedisAway("the simulated Redis is away")
        self.commands[command] += 1
        await self.processor.work(seconds, NETWORK_S)


class RedisClient:
    """A connection, as `redis.asyncio.Redis`; a reader's processor decodes the records that it reads."""

    def __init__(self, server: SimulatedRedis, reader: Processor | None = None, decode_s: float = 0.0) -> None:
        self._server, self._reader, self._decode_s = server, reader, decode_s

    async def hset(self, key: str, name: str, value: str) -> int:
        """Write a field."""
        await self._server.serve("hset", self._server.costs.renewal)
        self._server.hashes[key][name.encode()] = value.encode()
        return 0

    async def hdel(self, key: str, *names: str | bytes) -> int:
        """Remove fields."""
        await self._server.serve("hdel", self._server.costs.command)
        found = self._server.hashes[key]
        return sum(found.pop(n.encode() if isinstance(n, str) else n, None) is not None for n in names)

    async def hgetall(self, key: str) -> dict[bytes, bytes]:
        """Read all fields."""
        server, found = self._server, dict(self._server.hashes.get(key, {}))
        await server.serve("hgetall", server.costs.command + server.costs.record * len(found))
        server.bytes_sent += sum(map(len, found.values()))
        if self._reader is not None:
            await self._reader.work(self._decode_s * len(found))
        return found

    async def scan_iter(self, match: str, count: int) -> AsyncIterator[bytes]:
        """Yield the keys of a pattern."""
        await self._server.serve("scan", self._server.costs.command)
        for key in [key for key, fields in self._server.hashes.items() if fields and fnmatch.fnmatch(key, match)]:
            yield key.encode()

    async def aclose(self) -> None:
        """Hold nothing."""

    disconnect = aclose


class RateWindows:
    """The windows of rates, as `limits.aio.storage.RedisStorage`."""

    def __init__(self, server: SimulatedRedis) -> None:
        self._server = server

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count, and begin a window where none is open."""
        await self._server.serve("count", self._server.costs.count)
        used, ends = self._server.windows.get(key, (0, 0.0))
        now = self._server.clock.now
        used, ends = (used, ends) if ends > now else (0, now + expiry)
        self._server.windows[key] = (used + amount, ends)
        return used + amount

    async def get(self, key: str) -> int:
        """How much is used of an open window."""
        await self._server.serve("get", self._server.costs.command)
        used, ends = self._server.windows.get(key, (0, 0.0))
        return used if ends > self._server.clock.now else 0

    async def get_expiry(self, key: str) -> float:
        """When a window ends."""
        await self._server.serve("get", self._server.costs.command)
        return self._server.windows.get(key, (0, 0.0))[1]
