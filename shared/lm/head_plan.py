"""Head plan: the roles of a model's heads as an artefact, `head-plan/1`, made by experiments for attention methods.

A plan crosses services as JSON, addressed by the digest of its canonical form. Knows how scores become roles and
whether a plan fits a model; knows nothing about where scores come from or what roles are used for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fovea.errors import BadInput, Malformed, TooLarge
from shared.lm.config import DecoderConfig
from shared.validation_errors import list_errors

MAX_BYTES = 16 * 2**20
"""Largest file that is read: a plan of 128 layers of 128 heads with ten scores takes 3 MB."""

Score = list[list[float]]


class ModelId(BaseModel):
    """Identity of the model that a plan was made for; empty fields are not checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    weights_sha256: str = ""
    layers: int | None = None
    query_heads: int | None = None
    kv_heads: int | None = None


class Origin(BaseModel):
    """Origin of a plan: the experiment, its spec and seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: str = ""
    spec: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    created: str = ""


class QueryCentres(BaseModel):
    """Centres of each query head's queries before rotation, per rotary pair [L][H][d/2].

    Attributes:
        real, imag: The mean query, a pair of channels (i, i + d/2) as a complex number.
        size: The mean length of the pairs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    real: list[Score]
    imag: list[Score]
    size: list[Score]

    @cached_property
    def tables(self) -> np.ndarray:
        """All three [3,L,H,d/2] float32."""
        return np.array([self.real, self.imag, self.size], np.float32)

    @model_validator(mode="after")
    def _is_regular(self) -> Self:
        shapes = [np.shape(table) for table in (self.real, self.imag, self.size)]
        if len(set(shapes)) != 1 or len(shapes[0]) != 3:
            raise ValueError(f"real, imag and size are tables [L][H][d/2] of one shape, not {shapes}")
        return self


class HeadPlan(BaseModel):
    """Roles of key/value heads, chosen query heads, query centres, or several of them; at least one is required.

    Attributes:
        schema_: Always `head-plan/1`; `schema` on the wire.
        model: The model it was made for.
        made_by: Where it comes from.
        scores: Evidence by name, [L][G] or [L][H]; unknown names are kept.
        roles: [L][G], 1 = full (retrieval), 0 = streaming.
        rule: How roles came from scores, in words.
        full_fraction: Share of full heads.
        heads: (layer, query head) pairs (ACT).
        centres: Of queries before rotation (TriAttention).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)

    schema_: Literal["head-plan/1"] = Field(alias="schema")
    model: ModelId = ModelId()
    made_by: Origin = Origin()
    scores: dict[str, Score] = Field(default_factory=dict)
    roles: list[list[Literal[0, 1]]] | None = None
    rule: str = ""
    full_fraction: float | None = Field(None, ge=0, le=1)
    heads: list[tuple[int, int]] | None = None
    centres: QueryCentres | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.roles is None and self.heads is None and self.centres is None:
            raise ValueError("a plan needs roles, heads or centres")
        for name, table in (("roles", self.roles), *self.scores.items()):
            if table is not None and len({len(row) for row in table}) > 1:
                raise ValueError(f"the rows of {name} differ in length")
        return self

    @classmethod
    def parse(cls, source: HeadPlan | Mapping[str, Any] | str | bytes) -> Self:
        """Parse a plan from a plan, a mapping or JSON text; `Malformed` if it is not a `head-plan/1`."""
        if isinstance(source, cls):
            return source
        try:
            return cls.model_validate_json(source) if isinstance(source, str | bytes) else cls.model_validate(source)
        except ValidationError as error:
            first = list_errors(error)[0]
            location = ".".join(map(str, first["loc"])) or "it"
            detail = f"The head plan can't be used: {location}: {first['msg']}."
            raise Malformed(
                detail, hint="See head-plan/1: schema, and roles, heads or centres.", field="plan"
            ) from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a plan from a file; `TooLarge` if it is larger than any plan, `Malformed` if it is none."""
        if path.stat().st_size > MAX_BYTES:
            detail = f"{path.name} has {path.stat().st_size:,} bytes; a head plan has at most {MAX_BYTES:,}."
            raise TooLarge(detail, field="plan")
        return cls.parse(path.read_bytes())

    @classmethod
    def from_scores(
        cls, scores: Mapping[str, Score], by: str, share: float, *, model: ModelId, made_by: Origin | None = None
    ) -> Self:
        """Make the plan whose top `share` of key/value heads by one of its scores [L][G] are full."""
        roles = top_share(scores[by], share)
        return cls(
            schema_="head-plan/1",
            model=model,
            made_by=made_by or Origin(),
            scores=dict(scores),
            roles=roles,
            rule=f"{by} in the top {share:g}; ties by lower (layer, head)",
            full_fraction=float(np.mean(roles)),
        )

    @classmethod
    def from_retrieval(cls, report: Mapping[str, Any], share: float, *, kv_heads: int | None = None) -> Self:
        """Make a plan from a report (`retrieval-report/1`, scores [L][H] per query head), a share of its heads full.

        G is `kv_heads`, or what the report's model says, or H. Raises Malformed if it is not a retrieval report.
        """
        try:
            if (schema := report.get("schema")) != "retrieval-report/1" or not report.get("scores"):
                raise Malformed(f"This is not a retrieval report: its schema is {schema!r}.", field="report")
            facts, scores = dict(report.get("model") or {}), report["scores"]
            L, H = len(scores), len(scores[0])
            G = kv_heads or int(facts.get("kv_heads") or H)
            named = {name: str(facts.get(name, "")) for name in ("name", "weights_sha256")}
            model = ModelId(**named, layers=L, query_heads=H, kv_heads=G)
            spec, created = {"report_sha256": _digest(report), "share": share}, str(report.get("created", ""))
            origin = Origin(experiment="retrieval_heads", spec=spec, seed=report.get("seed"), created=created)
            tables = {"retrieval": grouped_max(scores, G)}
            return cls.from_scores(tables, "retrieval", share, model=model, made_by=origin)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise Malformed("A retrieval report needs numbers [layers][heads] as scores.", field="report") from error

    @property
    def digest(self) -> str:
        """The sha256 of the canonical JSON; what the registry and cache fingerprints call this plan."""
        return _digest(self.facts())

    def facts(self) -> dict[str, Any]:
        """Return the JSON form; unset fields are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def text(self) -> str:
        """Return the canonical JSON: what files hold, and what the digest is of."""
        return _canonical(self.facts())

    def check(self, config: DecoderConfig, weights_sha256: str = "", *, force: bool = False) -> Self:
        """Refuse a plan for another model: BadInput if shapes, heads or weights are another's.

        An empty digest is not compared; `force` takes a plan made for other weights, whose shapes must fit all the
        same.
        """
        L, H, G = config.layers, config.heads, config.kv_heads
        wrong = [
            f"{name} is {len(table)}x{len(table[0]) if table else 0}, not {L}x{'|'.join(map(str, widths))}"
            for name, table, widths in (("roles", self.roles, (G,)), *((n, t, (G, H)) for n, t in self.scores.items()))
            if table is not None and (len(table) != L or len(table[0]) not in widths)
        ]
        for name, real in (("layers", L), ("query_heads", H), ("kv_heads", G)):
            if (made := getattr(self.model, name)) not in (None, real):
                wrong.append(f"it was made for {made} {name}, not {real}")
        heads = [tuple(pair) for pair in self.heads or ()]
        wrong += [f"there is no head {pair}" for pair in heads if not (0 <= pair[0] < L and 0 <= pair[1] < H)]
        if self.centres is not None and (shape := np.shape(self.centres.real)) != (L, H, config.head_dim // 2):
            wrong.append(f"its query centres are {shape}, not {(L, H, config.head_dim // 2)}")
        if wrong:
            raise BadInput(f"The head plan does not fit this model: {wrong[0]}.", field="plan")
        stated_digest = self.model.weights_sha256
        if stated_digest and weights_sha256 and stated_digest != weights_sha256 and not force:
            detail = f"The head plan was made for weights {stated_digest[:12]}…, and {weights_sha256[:12]}… are loaded."
            raise BadInput(detail, hint="Calibrate this model, or force it.", field="plan")
        return self

    def with_share(self, share: float, by: str | None = None) -> Self:
        """Return the same evidence with another cut: the top `share` of key/value heads by a score become full.

        The score is `duo_gate` by default, else the first with one value per key/value head; BadInput if there is no
        such score.
        """
        G = len(self.roles[0]) if self.roles else self.model.kv_heads
        usable = [name for name, table in self.scores.items() if table and G in (None, len(table[0]))]
        score = by or ("duo_gate" if "duo_gate" in usable else next(iter(usable), None))
        if score not in usable:
            detail = f"The head plan has no score {score or 'per key/value head'} to rank heads by."
            raise BadInput(detail, hint="Use a plan with scores, or give roles.", field="plan")
        plan = self.from_scores(self.scores, score, share, model=self.model, made_by=self.made_by)
        return plan.model_copy(update={"heads": self.heads, "centres": self.centres})


def top_share(scores: Sequence[Sequence[float]], share: float) -> list[list[Literal[0, 1]]]:
    """Compute roles [L][G]: 1 for the round(share·L·G) highest scores; ties go to the lower (layer, head)."""
    flat = np.asarray(scores, np.float64)
    top = np.argsort(-flat, axis=None, kind="stable")[: round(min(max(share, 0.0), 1.0) * flat.size)]
    roles = np.zeros(flat.size, int)
    roles[top] = 1
    return roles.reshape(flat.shape).tolist()  # type: ignore[no-any-return]  # numpy types no nested lists


def grouped_max(scores: Sequence[Sequence[float]], kv_heads: int) -> Score:
    """Reduce scores per query head [L][H] to key/value heads [L][G]: the largest of each group."""
    table = np.asarray(scores, np.float64)
    return table.reshape(table.shape[0], kv_heads, -1).max(-1).tolist()  # type: ignore[no-any-return]  # as above


def _canonical(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(facts).encode()).hexdigest()
