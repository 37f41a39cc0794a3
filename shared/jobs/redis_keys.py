"""Redis keys of the job queue.

A key is `{fovea:jobs}:<kind>:<name>`; the braces keep all of them in one slot of a Redis Cluster, so that one script
may touch several. `states.lua` builds its keys by the same rule from `ROOT`, which it gets as KEYS[1].

    kind      name              type    holds
    job       job id            hash    everything about one job; the fields are named in `codec.py` and `states.lua`
    stream    service:N         stream  job ids to deliver; N is 0 (handed back), 1 (high), 2 (normal), 3 (low priority)
    waiting   service           zset    queued jobs in the order of delivery: depth and position
    delayed   service           zset    queued jobs that wait out a back-off, by the time they are due
    line      service:N:tenant  zset    jobs of a tenant that are in a stream and not taken yet: two at most
    backlog   service:N:tenant  zset    jobs of a tenant that follow into the stream, in their order
    own       service:tenant    set     queued jobs of a tenant: its part of the places
    sequence  service           number  orders `waiting` within a priority
    tenant    tenant            zset    all jobs of a tenant by creation
    dead      tenant            zset    dead letters of a tenant by time of death
    bytes     tenant            number  what all jobs of a tenant hold, in Redis and in the object store
    once      digest            string  idempotency key of a tenant → job id
    expiring  all               zset    finished jobs by the time they are forgotten
    workers   service           hash    worker id → `queue.Worker` as JSON
    changed   all               channel job ids, each time something about them changes
    stop      service           channel job ids whose attempt has lost its job to a cancel
"""

from hashlib import sha256
from typing import Final

ROOT: Final = "{fovea:jobs}"

LEVELS: Final = (0, 1, 2, 3)
"""Streams of a service, in the order in which they are read."""


def key(kind: str, name: str = "all") -> str:
    """The key of a kind."""
    return f"{ROOT}:{kind}:{name}"


def stream_of(priority: int) -> int:
    """The stream of a priority: above 0 is high, below 0 is low."""
    return 2 - max(-1, min(priority, 1))


def idempotency_name(tenant: str, idempotency_key: str) -> str:
    """The name under which a tenant's idempotency key is stored; a digest, because callers choose its length."""
    return sha256(f"{len(tenant)}:{tenant}:{idempotency_key}".encode()).hexdigest()
