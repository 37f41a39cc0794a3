"""COCO's annotation JSON, as far as detection and segmentation use it: pictures, categories, boxes and outlines."""

import json

from pydantic import BaseModel, Field


class CocoImage(BaseModel):
    """A picture of a data set."""

    id: int
    file_name: str
    width: int
    height: int


class CocoCategory(BaseModel):
    """A class."""

    id: int
    name: str


class CocoAnnotation(BaseModel):
    """An object in a picture."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float] = Field(description="x, y, width, height in pixels.")
    area: float
    iscrowd: int = 0
    segmentation: list[list[float]] = Field([], description="Outlines, x and y in turn.")
    score: float | None = Field(None, description="Of a prediction.")


class CocoDataset(BaseModel):
    """A data set."""

    info: dict[str, str] = {}
    images: list[CocoImage] = []
    categories: list[CocoCategory] = []
    annotations: list[CocoAnnotation] = []

    def category_id(self, name: str) -> int:
        """Id of a class, which is added where it is new."""
        known = {category.name: category.id for category in self.categories}
        if name not in known:
            known[name] = max(known.values(), default=0) + 1
            self.categories.append(CocoCategory(id=known[name], name=name))
        return known[name]

    def add_image(self, file_name: str, width: int, height: int) -> int:
        """Id of a picture that is added."""
        image = CocoImage(id=len(self.images) + 1, file_name=file_name, width=width, height=height)
        self.images.append(image)
        return image.id

    def add_object(
        self,
        image_id: int,
        name: str,
        box: tuple[float, float, float, float],
        *,
        outlines: list[list[float]] | None = None,
        area: float | None = None,
        score: float | None = None,
    ) -> None:
        """Add an object of a class with its box x1, y1, x2, y2."""
        x1, y1, x2, y2 = box
        width, height = round(x2 - x1, 2), round(y2 - y1, 2)
        one = CocoAnnotation(
            id=len(self.annotations) + 1, image_id=image_id, category_id=self.category_id(name),
            bbox=(round(x1, 2), round(y1, 2), width, height), area=round(width * height if area is None else area, 2),
            segmentation=outlines or [], score=score,
        )  # fmt: skip
        self.annotations.append(one)

    def to_json(self) -> str:
        """The file's text; no `score` where there is none. Escapes keep names of files that are not UTF-8."""
        return json.dumps(self.model_dump(exclude_none=True), indent=1) + "\n"
