"""`GET /v1/judge/collection`: the graded mini-collection as text, ready to send to the other routes."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from services.relevance_judge.storage.mini_collection import load_mini_collection

router = APIRouter()


class CollectionOut(BaseModel):
    """Files by content."""

    topics: str = Field(description="Lines `qid<TAB>query`.")
    passages: str = Field(description="JSON lines with `id` and `text`.")
    qrels: str = Field(description="Labels of the first pass.")
    second: str = Field(description="Labels of the second pass.")
    runs: str = Field(description="Run lines of all systems.")
    judgements: dict[str, str] = Field(description="Verdicts of judges on it, JSON lines, by judge.")


@router.get("/collection")
def show_collection() -> CollectionOut:
    """Return the mini-collection that comes with the service."""
    folder = load_mini_collection().folder

    def text(name: str) -> str:
        return (folder / name).read_text("utf8")

    return CollectionOut(
        topics=text("topics.tsv"),
        passages=text("passages.jsonl"),
        qrels=text("qrels.txt"),
        second=text("qrels_second.txt"),
        runs="".join(file.read_text("utf8") for file in sorted((folder / "runs").glob("*.trec"))),
        judgements={file.stem: file.read_text("utf8") for file in sorted((folder / "judgements").glob("*.jsonl"))},
    )
