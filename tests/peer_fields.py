"""Fields of OpenAI's and vLLM's requests, from `peer_fields.toml`, and what becomes of each here."""

import pathlib
import tomllib

from pydantic import BaseModel

from fovea.api.request_fields import ACCEPTED, REFUSED, list_fields
from fovea.api.sampling import GUIDED

PEERS: dict[str, dict[str, str]] = tomllib.loads(pathlib.Path(__file__).with_suffix(".toml").read_text("utf8"))
"""Route → owner → the names of its fields, with white space between."""


def find_fate(name: str, model: type[BaseModel]) -> tuple[str, str]:
    """Treatment of a field where this model is read: `served`, `accepted`, `refused` or `unknown`, and a note."""
    known = dict(list_fields(model))
    note = known.get(name) or ""
    if name in GUIDED and "structured_outputs" in known:
        return "served", f"The older name of `structured_outputs.{GUIDED[name]}`."
    if name in known and not note.startswith("Taken and ignored"):
        return "served", note
    if name in REFUSED:
        return "refused", f"{REFUSED[name].hint}."
    return ("accepted", ACCEPTED[name]) if name in ACCEPTED else ("unknown", "")
