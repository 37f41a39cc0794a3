"""Lines of a batch: requests in, answers out, one JSON object a line. Knows OpenAI's form; knows no jobs."""

import json
import re
from itertools import islice
from typing import Any, NamedTuple
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from fovea.api.batches import ShortText
from fovea.errors import FoveaError, InvalidOption, Malformed, TooLarge
from services.gateway.http.bounded_json import parse_json
from services.gateway.policy.audit_log import STEERING_FIELDS
from shared.jobs.queue import Result
from shared.validation_errors import list_errors

MAX_LINES = 500
"""Requests in one batch."""

_LINE = re.compile(rb"\S[^\n]*")


class _Line(BaseModel):
    custom_id: ShortText
    method: str = "POST"
    url: str
    body: dict[str, Any]


class BatchLine(NamedTuple):
    """One request. Its body is JSON, whose parts would take twenty times the memory."""

    custom_id: str
    body: bytes
    model: str
    may_steer: bool


def parse_lines(data: bytes, endpoint: str) -> list[BatchLine]:
    """Parse a file of requests.

    Raises InvalidOption: it holds none or too many, a line that is not a request or goes elsewhere, or an id twice.
    """
    rows, number, at = list[tuple[int, bytes]](), 1, 0
    for row in islice(_LINE.finditer(data), MAX_LINES + 1):  # one by one: a file may hold millions of lines
        number, at = number + data.count(b"\n", at, row.start()), row.start()
        rows.append((number, row[0]))
    if not 1 <= len(rows) <= MAX_LINES:
        detail = f"The file holds {f'over {MAX_LINES}' if rows else 'no'} requests; 1 to {MAX_LINES} are taken."
        raise InvalidOption(detail, field="input_file_id")
    lines, first = list[BatchLine](), dict[str, int]()
    for number, text in rows:
        line = _parse_line(text, number)
        if line.method != "POST" or line.url != endpoint:
            detail = f"Line {number} is {line.method} {line.url[:80]}; all must be POST {endpoint}."
            raise InvalidOption(detail, field="input_file_id")
        if line.body.get("stream"):
            raise InvalidOption(f"Line {number} asks for a stream.", field="input_file_id")
        if (before := first.setdefault(line.custom_id, number)) != number:
            detail = f"The custom_id {line.custom_id[:80]!r} is there twice: in lines {before} and {number}."
            raise InvalidOption(detail, field="input_file_id")
        may_steer = bool(line.body.keys() & set(STEERING_FIELDS))
        body = json.dumps(line.body).encode()
        lines.append(BatchLine(line.custom_id, body, str(line.body.get("model")), may_steer))
    return lines


def _parse_line(row: bytes, number: int) -> _Line:
    try:
        return _Line.model_validate(parse_json(row))
    except (ValidationError, Malformed, TooLarge) as error:
        first: Any = {"msg": error.detail, "loc": ()} if isinstance(error, FoveaError) else list_errors(error)[0]
        reason, where = first["msg"], first["loc"]
        detail = f"Line {number} is no request: {'.'.join(map(str, where))} {reason.rstrip('.')}.".replace("  ", " ")
        raise InvalidOption(detail, field="input_file_id") from error


def write_answer(custom_id: str, job_id: str, result: Result) -> bytes:
    """The line of an answer."""
    try:
        body = json.loads(result.body)
    except ValueError:
        body = result.body.decode("utf-8", "replace")
    response = {"status_code": result.status, "request_id": job_id, "body": body}
    return _write(custom_id, response, None)


def write_failure(custom_id: str, code: str, message: str) -> bytes:
    """The line of a request that has no answer."""
    return _write(custom_id, None, {"code": code, "message": message})


def _write(custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    line = {"id": f"batch_req_{uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(line).encode() + b"\n"
