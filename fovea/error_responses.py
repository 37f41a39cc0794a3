"""Errors of the client: turns error responses and broken connections into exceptions of `fovea.errors`.

A problem (RFC 9457), OpenAI's `{"error": {…}}` and Open Inference's `{"error": "…"}` become the same classes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from fovea.errors import DeadlineExceeded, FoveaError, Malformed, NotReady, by_status


def parse_error(response: httpx2.Response) -> FoveaError:
    """Parse an error response, whose body must have been read, into an exception."""
    answered = f"The gateway answered {response.status_code} {response.reason_phrase}."
    error = _build_error(_parse_problem(_parse_body(response)), response.status_code, answered)
    error.retry_after = read_retry_after(response)
    error.hint = f"It moved to {response.headers['location']}" if response.has_redirect_location else error.hint
    return error


def parse_stream_error(event: Any) -> FoveaError | None:
    """Parse an event that says that the answer broke off into an exception; None for any other event."""
    if not isinstance(event, dict) or "choices" in event:
        return None
    body = event.get("problem") or (event if event.get("error") and "status" not in event else None)
    if not isinstance(body, dict):
        return None
    fields = _parse_problem(body)
    status = fields.get("status")
    return _build_error(fields, status if isinstance(status, int) else 500, "The answer broke off.")


@contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Turn failures of the connection to `url` into exceptions of `fovea.errors`.

    Raises NotReady: no gateway answers there, or the connection broke; DeadlineExceeded: the answer did not come in
    time; Malformed: the address is not valid.
    """
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        why = str(error) or type(error).__name__
        hint = "Set SSL_CERT_FILE to its authority." if "[SSL" in why else "Start one with `make run`, or set --url."
        raise NotReady(f"No gateway answers at {url}: {why}.", hint=hint) from error
    except httpx2.TimeoutException as error:
        hint = "Allow more time, or send the request as a job."
        raise DeadlineExceeded(f"{url} did not answer in time.", hint=hint) from error
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise Malformed(f"{url!r} is not the address of a gateway.", hint="Write it like http://HOST:8080.") from error
    except UnicodeEncodeError as error:
        detail = f"The request holds {error.object[error.start]!r}, which can't be sent as {error.encoding}."
        raise Malformed(detail, hint="Is the text in another encoding?") from error
    except (ValueError, TypeError) as error:  # NaN and infinities; a picture among the options
        advice = "Give pictures as `pictures`." if isinstance(error, TypeError) else None
        raise Malformed(f"The request can't be written as JSON: {error}.", hint=advice) from error
    except httpx2.RequestError as error:  # also a body that can not be decompressed
        detail = f"The connection to {url} broke: {str(error) or type(error).__name__}."
        raise NotReady(detail, hint="Try again.") from error


def read_retry_after(response: httpx2.Response) -> float | None:
    """Read the `Retry-After` header in seconds, whether it is a number or a date; None where there is none."""
    value = response.headers.get("retry-after", "").strip()
    with suppress(ValueError):
        return max(0.0, float(value))
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _parse_body(response: httpx2.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _parse_problem(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take the fields of a problem from an error body of any format."""
    inner = body.get("error")
    if not isinstance(inner, dict):  # Open Inference has a text here
        return {"detail": inner} if isinstance(inner, str) else body
    if "detail" in inner:  # a problem inside an event
        return inner
    return {"detail": inner.get("message"), "field": inner.get("param"), "code": inner.get("code")}


def _build_error(fields: Mapping[str, Any], status: int, detail: str) -> FoveaError:
    """The exception of a problem's fields; `detail` is said where they have none."""
    hint, field = _text(fields, "hint"), _text(fields, "field")
    return by_status(status)(_text(fields, "detail") or detail, hint=hint, field=field)


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) and value else None
