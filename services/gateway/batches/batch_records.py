"""Batch records: what is kept of each batch, every tenant's in the object store. Knows no jobs and no HTTP.

Two gateways may write the same batch. Decisions are created once; lines, which each could read again from
the jobs, are replaced.

    tenants/<digest>/openai/batches/<id>/begin.json     the batch as it was created, with its jobs
    tenants/<digest>/openai/batches/<id>/lines.json     lines of the requests that are over
    tenants/<digest>/openai/batches/<id>/cancelled      that somebody cancelled it
    tenants/<digest>/openai/batches/<id>/end.json       the batch as it ended
"""

import re

from pydantic import BaseModel, TypeAdapter

from fovea.api.batches import Batch
from fovea.errors import NotFound
from shared.storage import ObjectStore

MAX_BATCHES = 1000
"""Batches of one tenant; the oldest make room."""

_ID = re.compile(r"batch-[0-9a-f]{32}")


class BatchEntry(BaseModel):
    """One request of a batch, and its job."""

    custom_id: str
    job: str


class BatchLineOut(BaseModel):
    """The line of a request that is over."""

    line: str
    has_failed: bool


class BatchRecord(BaseModel):
    """A batch and its jobs."""

    batch: Batch
    entries: list[BatchEntry]


Lines = dict[str, BatchLineOut]
"""Lines of a batch by job."""

_LINES: TypeAdapter[Lines] = TypeAdapter(Lines)


class BatchRecords:
    """The batches of all tenants. Gateways with the same object store share them. Calls block."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def add(self, tenant: str, record: BatchRecord) -> None:
        """Store a new batch; of too many, the oldest go."""
        self._of(tenant, record.batch.id).put("begin.json", record.model_dump_json().encode())
        for batch_id in self.list_ids(tenant)[MAX_BATCHES:]:
            self._of(tenant, batch_id).delete_all()

    def load(self, tenant: str, batch_id: str) -> tuple[BatchRecord, Lines]:
        """The batch as it ended, or else as it was created, and the lines of what is over.

        Raises NotFound: the tenant has no such batch.
        """
        objects = self._of(tenant, batch_id)
        # Lines before the end: where another gateway has just removed them, the end is there.
        lines, begin, end = objects.get("lines.json"), objects.get("begin.json"), objects.get("end.json")
        if begin is None:
            raise _unknown_batch(batch_id)
        record = BatchRecord.model_validate_json(begin)
        if end is not None:
            record.batch = Batch.model_validate_json(end)
        return record, {} if lines is None else _LINES.validate_json(lines)

    def end(self, tenant: str, batch: Batch) -> Batch:
        """Store how a batch ended, unless another gateway has; returns what is stored."""
        objects = self._of(tenant, batch.id)
        if not objects.create("end.json", batch.model_dump_json().encode()):
            return self.load(tenant, batch.id)[0].batch
        objects.delete("lines.json")
        return batch

    def store_lines(self, tenant: str, batch_id: str, lines: Lines) -> None:
        """Keep lines, also when their jobs are forgotten."""
        self._of(tenant, batch_id).put("lines.json", _LINES.dump_json(lines))

    def cancel(self, tenant: str, batch_id: str) -> None:
        """Note that a batch is cancelled, for every gateway that sees it end."""
        self._of(tenant, batch_id).create("cancelled", b"")

    def is_cancelled(self, tenant: str, batch_id: str) -> bool:
        """Whether somebody cancelled a batch."""
        return self._of(tenant, batch_id).head("cancelled") is not None

    def list_ids(self, tenant: str) -> list[str]:
        """Ids of a tenant's batches, newest first."""
        begun = (facts for facts in self._below(tenant).list_objects() if facts.path.endswith("/begin.json"))
        newest = sorted(begun, key=lambda facts: facts.modified, reverse=True)
        return [facts.path.partition("/")[0] for facts in newest]

    def _below(self, tenant: str) -> ObjectStore:
        return self._objects.of_tenant(tenant).under("openai", "batches")

    def _of(self, tenant: str, batch_id: str) -> ObjectStore:
        if not _ID.fullmatch(batch_id):
            raise _unknown_batch(batch_id)
        return self._below(tenant).under(batch_id)


def _unknown_batch(batch_id: str) -> NotFound:
    return NotFound(f"There is no batch {batch_id[:80]!r}.", field="id")
