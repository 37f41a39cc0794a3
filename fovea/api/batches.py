"""Files and batches on the wire, in OpenAI's form."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from fovea.api.bounded_lists import ItemList

BatchStatus = Literal["in_progress", "completed", "cancelled"]
ShortText = Annotated[str, Field(max_length=512)]


class FileObject(BaseModel):
    """A stored file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: ShortText
    purpose: ShortText
    status: Literal["processed"] = "processed"


class FileList(ItemList[FileObject]):
    """Newest first."""

    has_more: bool = False


class DeletedFile(BaseModel):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchRequest(BaseModel, extra="allow"):
    """The batch to run: a file of requests, a line each."""

    input_file_id: str
    endpoint: ShortText = Field(description="Where the requests go, for example `/v1/chat/completions`.")
    completion_window: ShortText = Field("24h", description="Taken and ignored: jobs run as soon as they can.")
    metadata: dict[ShortText, ShortText] | None = Field(None, max_length=16)


class BatchCounts(BaseModel):
    """Requests by what became of them."""

    total: int
    completed: int = 0
    failed: int = 0


class Batch(BaseModel):
    """A batch and how far it is."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None = Field(None, description="Answers, a line each; null until all are there.")
    error_file_id: str | None = Field(None, description="Requests that failed, a line each.")
    created_at: int
    in_progress_at: int
    expires_at: int = Field(description="When what its jobs answered is forgotten, unless it was fetched before.")
    completed_at: int | None = None
    cancelled_at: int | None = None
    request_counts: BatchCounts
    metadata: dict[str, Any] | None = None


class BatchList(ItemList[Batch]):
    """Newest first."""

    has_more: bool = False
