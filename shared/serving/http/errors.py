"""Errors of the HTTP front, and unexpected exceptions made safe to show."""

import errno

from fovea.errors import BadInput, Fault, FoveaError, NotReady, StorageFull
from shared import telemetry


class NotAcceptable(BadInput):
    """No form of the answer fits the `Accept` header; the detail lists what it can."""

    status, title = 406, "Not acceptable"


def to_safe_error(error: BaseException, what: str) -> FoveaError:
    """A FoveaError as it is; any other exception is logged, and becomes a `Fault` without its text.

    A full or a read-only disk is said so: whoever runs the service can help. `what` failed, as the subject of a
    sentence: `The model pranet`.
    """
    if isinstance(error, FoveaError):
        return error
    telemetry.log().error("failed", what=what, exc_info=error)
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull("The disk of the service is full.", hint="Free space in FOVEA_DATA_DIR, or give it more.")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return NotReady("The disk of the service is read-only.", hint="Let FOVEA_DATA_DIR be written.")
    return Fault(f"{what} failed on this request.", hint="The log of the service says why, under the request id.")
