"""Of objects that expire the newest are kept: by age, by number and by bytes."""

import os
import time
from datetime import timedelta
from pathlib import Path

from shared.storage import ExpiringObjects, ObjectStore

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
