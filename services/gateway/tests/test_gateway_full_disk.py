"""Keys on a full disk: what is leaked can be revoked there, and the key file stays whole."""

import errno
import json
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fovea.errors import Conflict, Unauthenticated
from services.gateway.policy import reserved_file
from services.gateway.policy.audit_log import AuditLog
from services.gateway.policy.auth import KeyRing
from services.gateway.policy.reserved_file import replace_reserved


@pytest.fixture
def full_disk(monkeypatch):
    """From now on nothing gets new blocks and no folder a new file; what a file has already may be written."""
    write, opened = os.write, os.open

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write_in_place(handle: int, data: bytes) -> int:
        if os.lseek(handle, 0, os.SEEK_CUR) + len(data) > os.fstat(handle).st_size:
            fail()
        return write(handle, data)

    def open_known(path: str, flags: int, mode: int = 0o777) -> int:
        return opened(path, flags, mode) if Path(path).exists() else fail()  # type: ignore[return-value]

    def begin() -> None:
        monkeypatch.setattr(os, "write", write_in_place)
        monkeypatch.setattr(os, "open", open_known)
        monkeypatch.setattr(os, "posix_fallocate", fail)

    return begin


def test_keys_are_revoked_where_nothing_can_be_allocated(tmp_path, full_disk):
    ring = KeyRing(tmp_path / "keys.json")
    made = [ring.add("alice", ("infer",)) for _ in range(3)]
    full_disk()
    for key, text in made[:2]:
        ring.revoke(key.id)
        with pytest.raises(Unauthenticated):
            ring.authenticate(text)
    assert ring.authenticate(made[2][1]).tenant == "alice"


def test_keys_of_a_file_without_a_spare_are_revoked_in_place(tmp_path, full_disk):
    ring = KeyRing(tmp_path / "keys.json")
    (key, text), (_, other) = ring.add("alice", ("infer",)), ring.add("bob", ("infer",))
    (tmp_path / "keys.json").write_text((tmp_path / "keys.json").read_text().rstrip())
    (tmp_path / "keys.json.spare").unlink()
    full_disk()
    ring.revoke(key.id)
    assert [key.tenant for key in ring.list_keys()] == ["bob"]
    with pytest.raises(Unauthenticated):
        ring.authenticate(text)
    assert ring.authenticate(other).tenant == "bob"
    with pytest.raises(Conflict, match="No space left"):
        ring.add("carol", ("infer",), **dict.fromkeys(("rate_per_minute", "quota_per_day"), 10**4000))
    assert ring.list_keys()[0].tenant == "bob"


@pytest.mark.parametrize("sizes", [(10, 5000, 3, 20_000, 1), (4096, 4097, 8192)])
def test_a_reserved_file_holds_what_was_written_last(tmp_path, sizes):
    path = tmp_path / "file.json"
    for number, size in enumerate(sizes):
        replace_reserved(path, json.dumps([number] * size).encode())
        assert json.loads(path.read_text()) == [number] * size
    assert {each.name for each in tmp_path.iterdir()} == {"file.json", "file.json.spare"}
    assert {each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == {0o600}


def test_a_reserved_file_is_replaced_where_there_are_no_links(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(reserved_file.os, "link", refuse)
    for number in range(3):
        replace_reserved(tmp_path / "file.json", b"%d" % number)
        assert json.loads((tmp_path / "file.json").read_text()) == number


def test_an_act_that_the_audit_log_has_no_room_for_is_not_undone(tmp_path, full_disk):
    audit = AuditLog(tmp_path / "audit.jsonl")
    audit.write("ops/1", "key made", "a")
    full_disk()
    with capture_logs() as lines:
        audit.write("ops/1", "key revoked", "b")
    assert [entry["target"] for entry in audit.read(10)] == ["a"]
    assert "key revoked" in str(lines)
    assert "No space left" in str(lines)
