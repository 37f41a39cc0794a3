"""Objects are whole or absent, durable and private; one holder of a lock at a time, in a folder and in S3."""

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fovea.errors import Cancelled, NotReady, StorageFull
from shared.jobs.redis_server import RedisServer
from shared.settings import Settings, environment
from shared.storage import ExpiringObjects, ObjectLock, ObjectStore, object_lock, object_store
from shared.storage.tests.small_disk import make_read_only, mount_small_disk


def test_what_was_put_is_there_until_it_is_deleted_and_files_go_up_and_come_down(store, tmp_path):
    assert store.get("a/b") is None
    assert store.head("a/b") is None
    store.put("a/b", b"\0\xff" * 1000)
    assert store.get("a/b") == b"\0\xff" * 1000
    store.put("a/b", b"")
    assert store.get("a/b") == b""
    store.delete("a/b", "a/other")
    assert store.get("a/b") is None
    file, copy = tmp_path / "file", tmp_path / "deep" / "copy"
    file.write_bytes(os.urandom(12_000_000))
    store.upload("large", file)
    assert store.download("large", copy)
    assert copy.read_bytes() == file.read_bytes()
    assert not store.download("nothing", copy)
    assert sorted(copy.parent.iterdir()) == [copy]


def run_at_once(*deeds: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(deeds)) as threads:
        return [deed.result(30) for deed in [threads.submit(deed) for deed in deeds]]


def test_of_many_creators_one_wins_and_readers_never_see_half_an_object(store):
    won = run_at_once(*(partial(store.create, "x", str(n).encode()) for n in range(8)))
    assert won.count(True) == 1
    assert store.get("x") == str(won.index(True)).encode()
    contents = {bytes([n]) * 200_000 for n in range(4)}
    store.put("x", next(iter(contents)))
    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(lambda: [store.put("x", content) for content in [*contents] * 3])
        while not writing.done():
            assert store.get("x") in contents
        writing.result()


def test_a_store_below_another_or_of_a_tenant_sees_its_own_objects_alone(store):
    inner = store.under("one", "two")
    inner.put("a", b"1")
    inner.put("b/c", b"22")
    store.put("onerous", b"")
    assert sorted((facts.path, facts.size) for facts in inner.list_objects()) == [("a", 1), ("b/c", 2)]
    assert (inner.list_names(), store.list_names()) == (["a", "b"], ["one", "onerous"])
    assert store.get("one/two/a") == b"1"
    inner.delete_all()
    assert [facts.path for facts in store.list_objects()] == ["onerous"]
    names = ["alice", "Alice", "../alice", "alice/../bob", "", "\ud800", "a" * 4000]
    for name in names:
        assert store.of_tenant(name).create("secret", name.encode("utf8", "surrogatepass"))
    assert [store.of_tenant(name).get("secret") for name in names] == [n.encode("utf8", "surrogatepass") for n in names]


@pytest.mark.parametrize("path", ["", "..", "a/../b", "/etc/passwd", "a//b", "a/", "a\0b", "a b", "a/./b", "x" * 300])
def test_what_is_no_path_is_refused(store, path):
    for call in (store.get, store.delete, store.head, store.under, lambda p: store.put(p, b"x")):
        with pytest.raises(ValueError, match="not the path"):
            call(path)


def test_a_folder_is_private_and_empty_ones_go_and_what_another_writer_removes_at_once_was_stored(
    tmp_path, monkeypatch
):
    store = ObjectStore.open((tmp_path / "objects").as_uri())
    assert not (tmp_path / "objects").exists()
    store.put("jobs/1/request", b"x")
    assert stat.S_IMODE((tmp_path / "objects").stat().st_mode) == 0o700
    store.delete("jobs/1/request")
    assert list((tmp_path / "objects").iterdir()) == []

    def put_and_remove(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        store.delete("x")

    original = object_store.obstore.put
    monkeypatch.setattr(object_store.obstore, "put", put_and_remove)
    store.put("x", b"1")
    assert store.create("x", b"2")
    assert store.get("x") is None


def test_a_full_and_a_read_only_disk_say_what_to_do(tmp_path):
    with mount_small_disk(tmp_path / "disk") as place:
        store = ObjectStore.open((place / "objects").as_uri())
        store.put("small", b"x")
        with pytest.raises(StorageFull) as full:
            store.put("large", b"x" * 1_000_000)
        assert full.value.status == 507
        assert "FOVEA_OBJECT_STORE" in str(full.value.hint)
        make_read_only(place)
        with pytest.raises(NotReady, match="read-only"):
            store.put("more", b"x")
        assert store.get("small") == b"x"
        assert store.get("large") is None


def test_a_store_that_is_away_is_an_error_within_seconds(monkeypatch):
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, value in away.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NotReady, match="can't be reached"):
        ObjectStore.open("s3://bucket").get("x")


DAY = timedelta(days=1)


def write(objects: ExpiringObjects, tmp_path: Path, ages_h: dict[str, float], size: int = 10) -> None:
    """Put objects that were written so many hours ago, in that order."""
    for name, hours in ages_h.items():
        objects.put(name, b"x" * size)
        then = time.time() - 3600 * hours
        os.utime(tmp_path / name, (then, then))


def test_what_is_too_old_is_gone_even_before_the_next_comes_and_the_oldest_make_room_by_number_and_by_bytes(tmp_path):
    objects = ExpiringObjects(ObjectStore.open(tmp_path.as_uri()), DAY, count=9, nbytes=1000)
    write(objects, tmp_path, {"old": 25, "young": 23})
    assert objects.get("old") is None
    assert objects.get("young") == b"x" * 10
    assert objects.get("none") is None
    objects.put("new", b"")
    assert objects.objects.list_names() == ["new", "young"]
    few = ExpiringObjects(objects.objects, DAY, count=2, nbytes=1000)
    few.delete("new")
    write(few, tmp_path, {"a": 3, "b": 2, "c": 1})
    assert few.objects.list_names() == ["b", "c"]
    small = ExpiringObjects(few.objects, DAY, count=9, nbytes=25)
    write(small, tmp_path, {"d": 0.5})
    assert small.objects.list_names() == ["c", "d"]
    small.put("large", b"x" * 100)
    assert small.objects.list_names() == ["large"]
    small.delete("large")
    assert small.get("large") is None


def _hold(store: ObjectStore, log: list[str], name: str) -> None:
    with ObjectLock(store, lambda: None, poll_s=0.01):
        log.append(f"{name} in")
        time.sleep(0.02)
        log.append(f"{name} out")


def test_holders_follow_one_another_and_whoever_waits_may_give_up(store):
    log: list[str] = []
    run_at_once(*(partial(_hold, store, log, str(n)) for n in range(6)))
    assert len(log) == 12
    assert all(first.split()[0] == second.split()[0] for first, second in zip(log[::2], log[1::2], strict=True))
    assert len(store.list_names()) == 1, "numbers of the past are removed"

    def give_up() -> None:
        raise Cancelled("enough")

    with ObjectLock(store, lambda: None), pytest.raises(Cancelled), ObjectLock(store, give_up):
        pass
    with ObjectLock(store, give_up):
        pass


def test_a_holder_that_lives_keeps_its_lease(store, monkeypatch):
    monkeypatch.setattr(object_lock, "SILENT_S", 0.4)
    monkeypatch.setattr(object_lock, "_RENEW_S", 0.05)
    log: list[str] = []
    with ObjectLock(store, lambda: None) as held:
        other = threading.Thread(target=_hold, args=(store, log, "other"))
        other.start()
        time.sleep(0.8)  # two leases
        assert held.is_held()
        assert log == []
    other.join(10)
    assert log == ["other in", "other out"]


def test_a_holder_that_was_killed_is_followed(store, monkeypatch):
    monkeypatch.setattr(object_lock, "SILENT_S", 0.5)
    program = (
        "import sys, time\nfrom shared.storage import ObjectLock, ObjectStore\n"
        "store = ObjectStore.open(sys.argv[1]).under('l')\n"
        "with ObjectLock(store, lambda: None):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    url = str(store._root.url)
    with subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "held\n"
        child.kill()
    begun = time.monotonic()
    with ObjectLock(store.under("l"), lambda: None) as held:
        assert held.is_held()
    assert time.monotonic() - begun > 0.4


def test_a_replica_and_its_redis_write_nothing_that_others_read(tmp_path):
    """The real entry points: a worker, which starts and stops, and the Redis of `fovea up`."""
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o755)
    before = os.umask(0o077)
    try:
        with RedisServer(Settings(data_dir=state)) as server:
            variables = environment(FOVEA_REDIS_URL=server.url, FOVEA_DATA_DIR=str(state))
            command = [sys.executable, "-m", "shared.serving.worker", "medical-seg"]
            with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True, umask=0o022) as worker:
                assert worker.stderr
                while "working" not in (line := worker.stderr.readline()):
                    assert line, "the worker ended"
                worker.terminate()
    finally:
        os.umask(before)
    assert (written := list(state.rglob("*")))
    assert [path for path in (state, *written) if stat.S_IMODE(path.lstat().st_mode) & 0o077] == []
