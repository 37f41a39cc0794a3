"""The gallery of the first page: one result for each kind of user, with the command that made it (`make gallery`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
