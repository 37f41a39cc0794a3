"""Learn anew which pictures weights know, without touching the network.

Takes the recipe from the manifest and the data from a folder; writes the familiar features, the threshold of warnings
and how well both do. For weights that know their kind by other features, or shall know what may come by mistake.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fovea.errors import Conflict, InvalidOption
from fovea_recipes.training.folder_recipe import FolderRecipe
from fovea_recipes.training.recipe import recipe_named
from shared.registry.discovery import network
from shared.registry.weights import Manifest, read_weights, write_weights


def recalibrate(file: Path, data: Path, others: tuple[Path, ...] = (), foreign: tuple[Path, ...] = ()) -> Manifest:
    """Write weights again with what `FolderRecipe.calibrate_warnings` finds; the network's tensors stay as they are.

    `data` is the folder that they were trained on; `others` and `foreign` are as the recipe's.

    Raises:
        InvalidOption: The weights are of no recipe on folders.
        Conflict: The folder holds other data than they were trained on.
    """
    weights = read_weights(file)
    manifest = weights.manifest
    kind = recipe_named(str(manifest.recipe.get("name")))
    if not issubclass(kind, FolderRecipe):
        raise InvalidOption(f"{manifest.name} did not learn from a folder of pictures.", field="file")
    knobs = {key: value for key, value in manifest.recipe.items() if key in kind.model_fields}
    recipe = kind.model_validate(knobs | {"data": data, "others": others, "foreign": foreign})
    with TemporaryDirectory() as cache:  # masks are drawn from COCO files, and not needed any more
        digest = recipe.prepare(Path(cache))
    if digest != manifest.data["digest"]:
        detail = f"{data} is not the data that {manifest.name} learnt from: {digest}, not {manifest.data['digest']}."
        raise Conflict(detail, hint="Give the same folder; a file more or less makes it another.")
    built = network(manifest.network.name, **manifest.network.config)
    own = built.state_dict()
    built.load_state_dict(
        {key: torch.from_numpy(array).reshape(own[key].shape) for key, array in weights.arrays.items()}
    )
    found = recipe.calibrate_warnings(built.eval())
    old = ("auroc_", "warned_", "false_warnings")
    kept = {key: value for key, value in manifest.metrics.items() if not key.startswith(old)}
    changed = manifest.model_copy(
        update={
            "recipe": {"name": recipe.name, **recipe.model_dump(mode="json")},
            "metrics": kept | {key: round(value, 5) for key, value in found.metrics.items()},
            "constants": {**manifest.constants, **found.constants},
        }
    )
    return write_weights(file.parent, weights.arrays | found.arrays, changed)
