"""A sheet of sample pairs, each mixture above its scene, to look at."""

from __future__ import annotations

from PIL import Image

from fovea_recipes.training import contact_sheet as vision_contact_sheet
from fovea_recipes.vision_restoration.pairs import ReflectionPairs


def contact_sheet(pairs: ReflectionPairs, columns: int = 8, colours: int = 200) -> Image.Image:
    """Rows of mixtures, each row above the row of its scenes."""
    return vision_contact_sheet.contact_sheet(
        list(vision_contact_sheet.pair_rows(list(pairs.mixed), list(pairs.clean), columns)), columns, colours
    )
