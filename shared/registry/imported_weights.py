"""Imported weights in the object store: this machine's copy is what services load; `fovea import` writes to both.

Where the object store is a folder, that folder is the copy. Knows files; knows no model.
"""

import json
from pathlib import Path

from shared.storage import ObjectStore

_INDEX = ".fetched.json"  # which version of each object the copy holds


def fetch_weights(objects: ObjectStore, folder: Path) -> None:
    """Make `folder` a copy of the weights in the object store; only what changed is fetched.

    Raises NotReady if it can't be reached: demo weights in place of imported ones would be a wrong answer.
    """
    weights = objects.under("weights")
    if weights.folder is not None:
        return
    index = folder / _INDEX
    known: dict[str, str] = json.loads(index.read_text()) if index.exists() else {}
    there = {facts.path: facts.etag for facts in weights.list_objects()}
    # Manifests last: a reader that finds one finds the weights that it is of.
    for path in sorted(there, key=lambda path: path.endswith(".json")):
        if known.get(path) != there[path] or not (folder / path).exists():
            weights.download(path, folder / path)
    for path in known.keys() - there.keys():
        (folder / path).unlink(missing_ok=True)
    if there or known:
        folder.mkdir(parents=True, exist_ok=True)
        draft = index.with_suffix(".draft")
        draft.write_text(json.dumps(there))
        draft.replace(index)
