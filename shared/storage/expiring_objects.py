"""Objects that are forgotten: after an age, and the oldest once there are too many, or too many bytes. Calls block."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from shared.storage.object_store import ObjectStore


@dataclass(frozen=True)
class ExpiringObjects:
    """The objects of one store, of which the newest are kept.

    Attributes:
        objects: Where they are.
        age: How long one is kept.
        count: How many are kept.
        nbytes: Bytes that are kept together; the newest is kept, however large.
    """

    objects: ObjectStore
    age: timedelta
    count: int
    nbytes: int

    def put(self, path: str, content: bytes) -> None:
        """Store an object; those that are too old, or too much, go."""
        self.objects.put(path, content)
        found = sorted(self.objects.list_objects(), key=lambda facts: facts.modified, reverse=True)
        oldest, held, gone = datetime.now(UTC) - self.age, 0, []
        for i, facts in enumerate(found):
            held += facts.size
            if i and (i >= self.count or held > self.nbytes or facts.modified < oldest):
                gone.append(facts.path)
        self.objects.delete(*gone)

    def get(self, path: str) -> bytes | None:
        """The content of an object; None where there is none, or none that is young enough."""
        facts = self.objects.head(path)
        return None if facts is None or facts.modified < datetime.now(UTC) - self.age else self.objects.get(path)

    def delete(self, path: str) -> None:
        """Delete an object; an unknown one is ignored."""
        self.objects.delete(path)
