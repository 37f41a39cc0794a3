"""One holder at a time, over threads and processes; a dead holder is followed within seconds."""

import subprocess
import sys
import threading
import time

import pytest

from fovea.errors import Cancelled
from shared.storage import ObjectLock, ObjectStore, object_lock


def _hold(store: ObjectStore, log: list[str], name: str) -> None:
    with ObjectLock(store, lambda: None, poll_s=0.01):
        log.append(f"{name} in")
        time.sleep(0.02)
        log.append(f"{name} out")


def test_holders_follow_one_another(store):
    log: list[str] = []
    threads = [threading.Thread(target=_hold, args=(store, log, str(n))) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(log) == 12
    assert all(first.split()[0] == second.split()[0] for first, second in zip(log[::2], log[1::2], strict=True))
    assert len(store.list_names()) == 1, "numbers of the past are removed"


def test_whoever_waits_may_give_up(store):
    def give_up() -> None:
        detail = "enough"
        raise Cancelled(detail)

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
