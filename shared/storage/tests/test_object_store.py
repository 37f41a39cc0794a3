"""Objects are whole or absent, durable and private in a folder and in S3; the newest that expire stay."""

import os
import stat
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fovea.errors import NotReady, StorageFull
from shared.storage import ExpiringObjects, ObjectStore, object_store
from shared.storage.tests.small_disk import make_read_only, mount_small_disk


def test_what_was_put_is_there_until_it_is_deleted(store):
    assert store.get("a/b") is None
    assert store.head("a/b") is None
    store.put("a/b", b"\0\xff" * 1000)
    assert store.get("a/b") == b"\0\xff" * 1000
    store.put("a/b", b"")
    assert store.get("a/b") == b""
    store.delete("a/b", "a/other")
    assert store.get("a/b") is None


def test_an_object_that_another_writer_removes_at_once_was_stored(tmp_path, monkeypatch):
    store = ObjectStore.open((tmp_path / "objects").as_uri())

    def put_and_remove(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        store.delete("x")

    original = object_store.obstore.put
    monkeypatch.setattr(object_store.obstore, "put", put_and_remove)
    store.put("x", b"1")
    assert store.create("x", b"2")
    assert store.get("x") is None


def test_of_many_creators_one_wins_and_nothing_is_replaced(store):
    won: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: store.create("x", str(n).encode()) and won.append(n)) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("x") == str(won[0]).encode()


def test_a_store_below_another_sees_its_own_objects_alone(store):
    inner = store.under("one", "two")
    inner.put("a", b"1")
    inner.put("b/c", b"22")
    store.put("onerous", b"")
    assert sorted((facts.path, facts.size) for facts in inner.list_objects()) == [("a", 1), ("b/c", 2)]
    assert inner.list_names() == ["a", "b"]
    assert store.list_names() == ["one", "onerous"]
    assert store.get("one/two/a") == b"1"
    inner.delete_all()
    assert [facts.path for facts in store.list_objects()] == ["onerous"]


def test_tenants_share_nothing_whatever_they_are_called(store):
    names = ["alice", "Alice", "../alice", "alice/../bob", "", "\ud800", "a" * 4000]
    for name in names:
        assert store.of_tenant(name).create("secret", name.encode("utf8", "surrogatepass"))
    assert [store.of_tenant(name).get("secret") for name in names] == [n.encode("utf8", "surrogatepass") for n in names]


@pytest.mark.parametrize("path", ["", "..", "a/../b", "/etc/passwd", "a//b", "a/", "a\0b", "a b", "a/./b", "x" * 300])
def test_what_is_no_path_is_refused(store, path):
    for call in (store.get, store.delete, store.head, store.under, lambda p: store.put(p, b"x")):
        with pytest.raises(ValueError, match="not the path"):
            call(path)


def test_files_go_up_and_come_down(store, tmp_path):
    file, copy = tmp_path / "file", tmp_path / "deep" / "copy"
    file.write_bytes(os.urandom(12_000_000))
    store.upload("large", file)
    assert store.download("large", copy)
    assert copy.read_bytes() == file.read_bytes()
    assert not store.download("nothing", copy)
    assert sorted(copy.parent.iterdir()) == [copy]


def test_readers_never_see_half_an_object(store):
    contents = {bytes([n]) * 200_000 for n in range(4)}
    store.put("x", next(iter(contents)))
    is_done = threading.Event()

    def write() -> None:
        for content in [*contents] * 3:
            store.put("x", content)
        is_done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not is_done.is_set():
        assert store.get("x") in contents
    writer.join()


def test_a_folder_is_private_and_leaves_no_empty_folders(tmp_path):
    store = ObjectStore.open((tmp_path / "objects").as_uri())
    assert not (tmp_path / "objects").exists()
    store.put("jobs/1/request", b"x")
    assert stat.S_IMODE((tmp_path / "objects").stat().st_mode) == 0o700
    store.delete("jobs/1/request")
    assert list((tmp_path / "objects").iterdir()) == []


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


def test_what_is_too_old_is_gone_even_before_the_next_comes(tmp_path):
    objects = ExpiringObjects(ObjectStore.open(tmp_path.as_uri()), DAY, count=9, nbytes=1000)
    write(objects, tmp_path, {"old": 25, "young": 23})
    assert objects.get("old") is None
    assert objects.get("young") == b"x" * 10
    assert objects.get("none") is None
    objects.put("new", b"")
    assert objects.objects.list_names() == ["new", "young"]


def test_the_oldest_make_room_by_number_and_by_bytes(tmp_path):
    few = ExpiringObjects(ObjectStore.open(tmp_path.as_uri()), DAY, count=2, nbytes=1000)
    write(few, tmp_path, {"a": 3, "b": 2, "c": 1})
    assert few.objects.list_names() == ["b", "c"]
    small = ExpiringObjects(few.objects, DAY, count=9, nbytes=25)
    write(small, tmp_path, {"d": 0.5})
    assert small.objects.list_names() == ["c", "d"]
    small.put("large", b"x" * 100)
    assert small.objects.list_names() == ["large"]
    small.delete("large")
    assert small.get("large") is None
