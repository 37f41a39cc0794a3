"""`Page`: a page that a plug-in adds to the console, as an entry point of group `fovea.pages`: NAME is in its URL."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from starlette.requests import Request

from services.gateway.console.gateway_client import InProcessClient


@dataclass(frozen=True, slots=True)
class GalleryEntry:
    """A result.

    Attributes:
        user: Kind of user.
        title: Its subject.
        picture: File in `static`.
        alt: The picture in words.
        origin: Whether its data are real.
        facts: Facts about the data.
        command: Command that made it, a block of `docs/gallery.md`.
        page: Where the console does the same.
    """

    user: str
    title: str
    picture: str
    alt: str
    origin: Literal["real", "synthetic"]
    facts: str
    command: str
    page: str


GALLERY = (
    GalleryEntry(
        user="Search team",
        title="Is this judge worth believing?",
        picture="gallery/trust.svg",
        alt="Pair order of the judge against word overlap, BM25 and the embedder, with intervals",
        origin="synthetic",
        facts="24 topics whose labels one language model wrote. The report: no better than the embedder alone.",
        command="fovea judge trust mini/qrels.txt mini/judgements/query-lift.jsonl --topics mini/topics.tsv "
        "--passages mini/passages.jsonl --json > out/trust.json",
        page="/console/judge",
    ),
    GalleryEntry(
        user="Researcher",
        title="Which heads do what",
        picture="gallery/heads.svg",
        alt="Maps of heads of SmolLM2: previous token, duplicate token, induction",
        origin="real",
        facts="Weights of SmolLM2-135M-Instruct, on 32 random tokens that come twice.",
        command="curl -s 'http://127.0.0.1:8080/v1/probe/heads/patterns?format=svg' "
        "-H 'content-type: application/json' -d '{}' -o out/heads.svg",
        page="/console/probe",
    ),
)


Facts = Mapping[str, Any]

STATIC = "/console/static"
"""Where style sheets, modules and icons are served; a page's own are below `plugins/SLUG`."""


async def fetch_models(client: InProcessClient, request: Request) -> Facts:
    """Fetch the list of models, which checks the reader's key."""
    return {"models": await client.models(request)}


@dataclass(frozen=True, slots=True)
class Page:
    """A page at `/console/SLUG`.

    Attributes:
        title: Its words in the link on the page that it belongs to; in the navigation it has the name of its URL.
        folder: Holds the template and a folder `static` with the ES module, style sheets and pictures.
        template: A Jinja template in `folder` that extends `layout.html`.
        module: ES module in `static`; it defines the page's custom elements.
        styles: Style sheets in `static`.
        under: Page of the core that links to it (`segment`, `detect`, `chat`, …), and in whose group it is; or None.
        group: Its group in the navigation (`Images`, `Language`, `Evaluate`, `Interpret`, …), if `under` is None.
        panel: A template in `folder` that the page `under` includes in its form, with the module and the style sheets;
            only `chat` has a place for one. Its element has `data-part="panel"`, and for the chat the properties
            `requestFields`, `newMessages(messages)` and `showLongctx(facts, turn)`.
        workbench: ES module in `static` that a page of pictures (`under`) loads for files that no browser shows and for
            `exports`: `accepts(file)`, `open(page, files)` and `exportAll(page, form)` (`static/js/addons.js`).
        opens: Kind of these files, in the words of the drop target, such as `DICOM`.
        exports: Forms of export that the module adds, with the words of their buttons.
        icon: Its icon in the navigation, one of `templates/icons`.
        gallery: Results that the first page shows; their pictures are in `static`.
        path: Path of the API whose jobs the page shows, at `?job=ID`, or None.
        fetch: Fetches what the template shows, with the reader's key.
    """

    title: str
    folder: Path
    template: str = "page.html"
    module: str | None = None
    styles: tuple[str, ...] = ()
    under: str | None = None
    group: str = "More"
    panel: str | None = None
    workbench: str | None = None
    opens: str = ""
    exports: Mapping[str, str] = field(default_factory=dict)
    icon: str = "run"
    path: str | None = None
    gallery: tuple[GalleryEntry, ...] = ()
    fetch: Callable[[InProcessClient, Request], Awaitable[Facts]] = fetch_models

    def place_gallery(self, slug: str) -> list[GalleryEntry]:
        """Return the results of the gallery with the URLs of their pictures."""
        return [replace(entry, picture=f"plugins/{slug}/{entry.picture}") for entry in self.gallery]
