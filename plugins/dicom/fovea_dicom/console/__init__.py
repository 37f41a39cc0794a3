"""The console's page of a study, and its result on the first page."""

from pathlib import Path

from services.gateway.console.page import GalleryEntry, Page

page = Page(
    title="DICOM? Open a study",
    folder=Path(__file__).parent,
    module="study.js",
    under="segment",
    icon="card",
    path="/v1/segment/dicom",
    workbench="workbench.js",
    opens="DICOM",
    exports={"dicom-seg": "All as DICOM SEG"},
    gallery=(
        GalleryEntry(
            user="Hospital",
            title="A study becomes masks, areas and a report",
            picture="study.jpg",
            alt="Two frames of a colonoscopy, the polyp marked in both",
            origin="real",
            facts="A frame of HyperKvasir (CC BY 4.0) and its mirror image, marked by pranet. Not a medical device.",
            command="fovea segment study/ -o out",
            page="/console/study",
        ),
    ),
)
