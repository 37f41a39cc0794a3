"""The console's page of a survey, and its result on the first page."""

from pathlib import Path

from services.gateway.console.page import GalleryEntry, Page

page = Page(
    title="Photographs with GPS? Make a survey",
    folder=Path(__file__).parent,
    module="survey.js",
    styles=("survey.css",),
    under="detect",
    icon="survey",
    path="/v1/detect/survey",
    gallery=(
        GalleryEntry(
            user="Road authority",
            title="Photographs become a map of damage",
            picture="survey.svg",
            alt="A map: the road shaded by damage per kilometre, dots by class, a dashed inspection route",
            origin="synthetic",
            facts="Two real photographs, mirrored and in other light, 90 times along a made-up road, "
            "searched by yolo9tr.",
            command="fovea survey drive/ -o out",
            page="/console/survey",
        ),
    ),
)
