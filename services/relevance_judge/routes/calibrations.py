"""`/v1/judge/calibrations`: fit cuts on labelled signals, and store them under a name in numbered versions."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from fovea.errors import InvalidOption
from services.relevance_judge.judge import open_calibrations, read_calibration
from services.relevance_judge.metrics.calibration import Calibration, FitRule, fit
from services.relevance_judge.schemas import StrictModel
from services.relevance_judge.storage.versioned_store import VersionedStore
from shared.serving.http.openapi_routes import problems
from shared.serving.http.tenant import get_tenant

router = APIRouter()


class CalibrationIn(StrictModel):
    """Labelled signals to fit cuts on, and what the cuts will belong to."""

    name: str | None = Field(None, description="Store it under this name, as the next version.")
    signals: list[float] = Field(max_length=100_000, description="One per pair.")
    grades: list[int] = Field(max_length=100_000, description="Its label, 0–3.")
    queries: list[str] = Field(max_length=100_000, description="Its query; evaluation leaves whole queries out.")
    pairs: list[str] = Field([], max_length=100_000, description="Its id, stored with the cuts.")
    how: FitRule = Field("quantile", description="`quantile`, or `kappa` for the best quadratic kappa.")
    signal: str | None = Field(None, description="Name of the signal.")
    model: str | None = Field(None, description="Language model that the cuts belong to; others are refused then.")
    template: str | None = Field(None, description="`id@digest` that the cuts belong to; others are refused then.")


class CalibrationOut(BaseModel):
    """Cuts to send along as `calibration` with `POST /v1/judge`, themselves or by name; verdicts carry `called`."""

    name: str | None
    version: int | None
    digest: str
    called: str
    calibration: Calibration


class CalibrationRow(BaseModel):
    """A stored calibration in the list."""

    name: str
    versions: list[int]
    latest: CalibrationOut


@router.post("/calibrations", responses=problems(422))
def calibrate(request: Request, body: CalibrationIn) -> CalibrationOut:
    """Fit cuts and evaluate them by leaving queries out; with a name, store them."""
    if body.pairs and len(body.pairs) != len(body.signals):
        raise InvalidOption(f"{len(body.pairs)} ids for {len(body.signals)} signals.", field="pairs")
    owner = {"signal": body.signal, "model": body.model, "template": body.template, "training": tuple(body.pairs)}
    found = fit(body.signals, body.grades, body.queries, how=body.how).model_copy(update=owner)
    if body.name is not None:
        version = _open_store(request).add(body.name, found.model_dump(mode="json", exclude={"name", "version"}))
        found = found.model_copy(update={"name": body.name, "version": version})
    return _describe(found)


@router.get("/calibrations")
def list_calibrations(request: Request) -> list[CalibrationRow]:
    """List the stored calibrations, each with its latest version."""
    store = _open_store(request)
    versions = {name: store.list_versions(name) for name in store.list_names()}
    return [
        CalibrationRow(name=name, versions=found, latest=_describe(read_calibration(store, name)))
        for name, found in versions.items()
    ]


@router.get("/calibrations/{name}", responses=problems(404))
def show_calibration(
    request: Request, name: Annotated[str, Path(description="Name, or name@version.")]
) -> CalibrationOut:
    """Show a stored calibration: `name` for the latest, `name@version` for exactly that one."""
    return _describe(read_calibration(_open_store(request), name))


def _open_store(request: Request) -> VersionedStore:
    return open_calibrations(request.app.state.objects, get_tenant(request))


def _describe(found: Calibration) -> CalibrationOut:
    facts = {"name": found.name, "version": found.version, "digest": found.digest, "called": found.reference}
    return CalibrationOut(**facts, calibration=found)
