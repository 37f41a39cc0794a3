"""A process that outgrows its memory ends itself with a message, and takes nothing else along."""

import subprocess
import sys
import textwrap

import pytest
import redis

from fovea.api.replica import ReplicaRecord, replicas_key
from shared.serving.memory_guard import EXIT_STATUS, find_memory_limit, read_resident_bytes
from shared.settings import Settings

GREEDY = textwrap.dedent(
    """
    import asyncio, sys, threading
    from shared.serving.build_app import build
    from shared.serving.memory_guard import read_resident_bytes
    from shared.serving.replica import ReplicaServer
    from shared.settings import Settings

    async def main():
        limit = read_resident_bytes() + 300 * 2**20
        settings = Settings(redis_url=sys.argv[1], replica_memory_bytes=limit, shutdown_grace_s=0.5)
        server = ReplicaServer(build("toy", servables={}, settings=settings), settings)
        await server.start()
        threading.Thread(target=grow, daemon=True).start()
        await asyncio.sleep(30)

    def grow():
        import time
        held = []
        while True:
            held.append(bytearray(b"x") * 2**23)
            time.sleep(0.002)

    asyncio.run(main())
    """
)


def test_a_replica_that_outgrows_its_memory_says_so_in_its_last_record(redis_url):
    done = subprocess.run([sys.executable, "-c", GREEDY, redis_url], capture_output=True, text=True, check=False)
    with redis.Redis.from_url(redis_url) as client:
        (last,) = map(ReplicaRecord.model_validate_json, client.hvals(replicas_key("toy")))
    assert done.returncode == EXIT_STATUS, done.stderr
    assert last.out_of_memory
    assert not last.ready
    assert last.memory > 1
    assert "FOVEA_REPLICA_MEMORY_BYTES" in last.trouble
    assert last.trouble in done.stdout + done.stderr


def test_memory_is_limited_even_where_nobody_says_so():
    assert find_memory_limit(Settings(replica_memory_bytes=5)) == 5
    assert find_memory_limit(Settings(replica_memory_bytes=0)) == 0
    assert find_memory_limit(Settings()) > read_resident_bytes() > 2**20


SHARING = """
import os, pathlib, sys, time
from shared.serving.memory_guard import MemoryGuard, MemoryShares

shares = MemoryShares(pathlib.Path(sys.argv[1]), int(sys.argv[2]) * 2**20)
guard = MemoryGuard(2**40, lambda: os._exit(137), shares)
held = bytearray(b"x") * (int(sys.argv[3]) * 2**20)
time.sleep(20)
"""


def test_of_processes_that_take_too_much_together_the_largest_ends_itself(tmp_path):
    def start(folder, bound, size):
        return subprocess.Popen([sys.executable, "-c", SHARING, str(folder), str(bound), str(size)])

    small, large, alone = start(tmp_path, 500, 120), start(tmp_path, 500, 450), start(tmp_path / "other", 500, 200)
    try:
        assert large.wait(15) == EXIT_STATUS
        assert (small.poll(), alone.poll()) == (None, None)
        later = start(tmp_path, 500, 130)  # what the dead one had is free again
        with pytest.raises(subprocess.TimeoutExpired):
            later.wait(4)
    finally:
        for process in (small, large, alone, later):
            process.kill()
            process.wait()
