"""Batch store: manifests and label logs of one tenant, and summaries of what became of each batch."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from fovea.errors import NotFound
from services.relevance_judge.batches import label_log
from services.relevance_judge.batches.batch_runner import BatchPlan, StopReason
from services.relevance_judge.schemas import UNCALIBRATED
from shared.storage import ObjectStore

Row = dict[str, Any]

_ID = frozenset("0123456789abcdef")


class BatchOut(BaseModel):
    """The state of a batch. Sent again, it goes on with what failed or was left."""

    id: str = Field(description="Digest of judge, options, models and pairs: the same request is the same batch.")
    judge: str
    templates: list[str] = Field(description="`id@digest`, and the embedders of `similarity`.")
    llm: str | None = Field(description="The language model that was asked for.")
    answered_by: list[str] = Field(description="Models named in the answers; more than one deserves a look.")
    pairs: int
    distinct: int = Field(description="Pairs with different texts; each is judged once.")
    graded: int = Field(description="Pairs with a grade, imputed ones included.")
    invalid: int = Field(description="Pairs whose answers held no valid grade.")
    uncalibrated: int = Field(description="Pairs with a signal and no grade, as no calibration was given.")
    imputed: int
    failed: int = Field(description="Pairs on which the endpoint failed; they are tried again next time.")
    left: int = Field(description="Pairs that were not judged yet.")
    reused: int = Field(description="Pairs whose labels were there before this call.")
    counts: list[int] = Field(description="Labels per grade.")
    tokens: int = Field(description="Of language models, also in earlier calls; 0 for a judge that asks none.")
    cost: float | None
    stopped: StopReason | None = Field(description="Why pairs are left: the budget is spent, or nobody answers.")
    errors: dict[str, int] = Field(description="Failures by their text, most frequent first.")
    notes: list[str]
    files: dict[str, str] = Field(description="Where the labels are, by form.")


class BatchRow(BaseModel):
    """A batch in the list."""

    id: str
    judge: str
    pairs: int
    at: float = Field(description="When it was first sent, seconds since 1970.")


class BatchStore:
    """The batches in the store of one tenant."""

    def __init__(self, objects: ObjectStore) -> None:
        self._manifests, self._labels = objects.under("batches"), objects.under("labels")

    def label_log(self, settings: str) -> ObjectStore:
        """Where the label log of one judge with one set of options is."""
        return self._labels.under(settings)

    def save(self, plan: BatchPlan, now: float) -> None:
        """Save a plan's manifest, whole or not at all, unless it is there."""
        facts = {name: value for name, value in asdict(plan).items() if name not in {"pairs", "keys"}}
        facts |= {"at": now, "pairs": [[p.qid, p.docid, k] for p, k in zip(plan.pairs, plan.keys, strict=True)]}
        content = json.dumps(facts, ensure_ascii=False).encode("utf8", "surrogatepass")
        self._manifests.create(f"{plan.id}.json", content)

    def load_manifest(self, name: str) -> dict[str, Any]:
        """The manifest of a batch; `NotFound` if there is no such batch."""
        content = self._manifests.get(f"{name}.json") if name and set(name) <= _ID else None
        if content is None:
            raise NotFound(f"There is no batch {name[:80]!r}.", hint="Its id is in the answer to the POST.")
        found: dict[str, Any] = json.loads(content.decode("utf8", "surrogatepass"))
        return found

    def list_batches(self, limit: int) -> list[BatchRow]:
        """The batches, newest first."""
        newest = sorted(self._manifests.list_objects(), key=lambda facts: facts.modified, reverse=True)
        found = [self.load_manifest(facts.path.removesuffix(".json")) for facts in newest[:limit]]
        return [BatchRow(id=m["id"], judge=m["judge"], pairs=len(m["pairs"]), at=m["at"]) for m in found]

    def load_rows(self, manifest: Mapping[str, Any]) -> list[Row]:
        """One row per pair that was judged: `qid`, `docid` and a verdict's fields, or `error`."""
        last: dict[str, Row] = {}
        for line in label_log.read_label_log(self.label_log(manifest["settings"])):
            if line.get("verdict") is not None:
                last[line["pair"]] = line["verdict"]
            elif "grade" not in last.get(line["pair"], {}):
                last[line["pair"]] = {"error": (line.get("error") or {}).get("detail", "It failed.")}
        return [{"qid": qid, "docid": docid, **last[key]} for qid, docid, key in manifest["pairs"] if key in last]


def summarise_batch(
    manifest: Mapping[str, Any], rows: Sequence[Row], *, reused: int = 0, stopped: StopReason | None = None
) -> BatchOut:
    """Summarise a batch from its manifest and rows."""
    failed = [row["error"] for row in rows if "error" in row]
    verdicts = [row for row in rows if "error" not in row]
    grades = [row["grade"] for row in verdicts if row["grade"] is not None]
    keys = {(qid, docid): key for qid, docid, key in manifest["pairs"]}
    asked = {keys[row["qid"], row["docid"]]: row for row in verdicts}.values()  # pairs of equal texts were asked once
    costs = [row["cost"] for row in asked if row.get("cost") is not None]
    models = list(dict.fromkeys(row["llm"] for row in verdicts if row.get("llm")))
    notes = list((manifest["options"].get("calibration") or {}).get("warnings", ()))
    uncalibrated = sum(row["reason"] == UNCALIBRATED for row in verdicts)
    if uncalibrated:
        notes.append(
            f"{manifest['judge']} is not calibrated here: {uncalibrated} pairs have a signal, which orders passages, "
            "and no grade. `fovea judge calibrate` fits cuts; `fovea judge trust` and `weights` need none."
        )
    if len(models) > 1:
        notes.append(f"More than one model answered: {', '.join(models)}.")
    url = f"/v1/judge/batches/{manifest['id']}"
    return BatchOut(
        **{name: manifest[name] for name in ("id", "judge", "templates", "llm")},
        answered_by=models,
        pairs=len(manifest["pairs"]),
        distinct=len({key for _, _, key in manifest["pairs"]}),
        graded=len(grades),
        invalid=sum(not row["valid"] for row in verdicts) - uncalibrated,
        uncalibrated=uncalibrated,
        imputed=sum("imputed" in row["flags"] for row in verdicts),
        failed=len(failed),
        left=len(manifest["pairs"]) - len(rows),
        reused=reused,
        counts=[grades.count(grade) for grade in range(4)],
        tokens=sum(row["tokens"] for row in asked),
        cost=sum(costs) if costs else None,
        stopped=stopped,
        errors=dict(Counter(failed).most_common(5)),
        notes=notes,
        files={form: f"{url}?form={form}" for form in ("qrels", "jsonl", "csv")},
    )
