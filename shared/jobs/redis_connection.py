"""Connections to Redis as operators have it: plain, with TLS, or found through Sentinel, all told by one URL.

    redis://[user:password@]host:port/db                      rediss:// with TLS
    redis+sentinel://[user:password@]host:port,…/master/db    rediss+sentinel:// with TLS, also to the Sentinels

A query sets further options of redis-py, for example `?ssl_ca_certs=/certs/ca.pem`; `sentinel_password` is that of the
Sentinels. `Settings.redis_url` is the whole URL, with the password and certificates that other settings name.
"""

from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.asyncio as aioredis
import redis.asyncio.sentinel as aiosentinel
import redis.sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

_SENTINEL_PORT: Final = 26379


class _BlockingSentinelPool(aiosentinel.SentinelConnectionPool, aioredis.BlockingConnectionPool):
    """Connections to the present master; waits for a free one where all are in use."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections, and with the last of them those to the Sentinels."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for client in self.sentinel_manager.sentinels:
                await client.aclose()


class _SentinelPool(redis.sentinel.SentinelConnectionPool):
    """Blocking connections to the present master."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections, and those to the Sentinels."""
        super().disconnect(inuse_connections)
        for client in self.sentinel_manager.sentinels:
            client.close()


def is_sentinel_url(url: str) -> bool:
    """Whether a URL names Sentinels rather than a server."""
    return urlsplit(url).scheme in {"redis+sentinel", "rediss+sentinel"}


def open_redis_pool(url: str, *, max_connections: int, timeout: float, **options: Any) -> aioredis.ConnectionPool:
    """A pool of asynchronous connections; a caller waits up to `timeout` seconds for a free one."""
    # A connection to a master that has become a replica is closed: the next one finds the new master.
    once = Retry(NoBackoff(), 0, (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError))
    limits: dict[str, Any] = {"max_connections": max_connections, "timeout": timeout, "retry": once, **options}
    if not is_sentinel_url(url):
        return aioredis.BlockingConnectionPool.from_url(url, **limits)
    pool: aioredis.ConnectionPool = _find_master(url, aiosentinel.Sentinel, _BlockingSentinelPool, limits)
    return pool


def open_async_redis(url: str, *, max_connections: int = 16, timeout: float = 5.0, **options: Any) -> aioredis.Redis:
    """An asynchronous client that closes its own pool."""
    pool = open_redis_pool(url, max_connections=max_connections, timeout=timeout, **options)
    return aioredis.Redis.from_pool(pool)


def open_redis(url: str, **options: Any) -> redis.Redis:
    """A blocking client, for start-up and `fovea doctor`."""
    if not is_sentinel_url(url):
        return redis.Redis.from_url(url, **options)
    return redis.Redis.from_pool(_find_master(url, redis.sentinel.Sentinel, _SentinelPool, options))


def _find_master(url: str, make_sentinel: Any, make_pool: Any, options: dict[str, Any]) -> Any:
    """A pool of connections to the master that a URL of the form `redis+sentinel://` names."""
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    master, _, database = parts.path.strip("/").partition("/")
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    sentinel: dict[str, Any] = {"password": query.pop("sentinel_password", None)}
    tls: dict[str, Any] = {name: query.pop(name) for name in list(query) if name.startswith("ssl_")}
    if parts.scheme == "rediss+sentinel":
        tls["ssl"] = True
    connection = {"username": unquote(user) or None, "password": unquote(password) or None, **query, **tls}
    nodes = [_node(host) for host in hosts.split(",")]
    shared = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout") if name in options}
    manager = make_sentinel(nodes, sentinel_kwargs=sentinel | tls | shared)
    return make_pool(master or "mymaster", manager, **connection, db=int(database or 0), **options)


def _node(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    return (host.strip("[]"), int(port)) if colon and port.isdecimal() else (text.strip("[]"), _SENTINEL_PORT)
