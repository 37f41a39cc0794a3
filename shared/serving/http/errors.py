"""Errors of the HTTP front, and unexpected exceptions made safe to show."""

import errno

from fovea.errors import BadInput, Fault, FoveaError, NotReady, StorageFull
from shared import telemetry


class NotAcceptable(BadInput):
    """No form of the answer fits the `Accept` header; the detail lists what it can."""

    status, title = 406, "Not acceptable"


def to_safe_error(error: BaseException, what: str, *, loads: bool = False) -> FoveaError:
    """A FoveaError as it is; any other exception is logged, and becomes a `Fault` without its text.

    A full or a read-only disk is said so. `what` failed, as a sentence's subject; a model that `loads` has no request.
    """
    if isinstance(error, FoveaError):
        return error
    telemetry.log().error("failed", what=what, exc_info=error)
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull("The disk of the service is full.", hint="Free space in FOVEA_DATA_DIR, or give it more.")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return NotReady("The disk of the service is read-only.", hint="Let FOVEA_DATA_DIR be written.")
    when, where = (f" ({type(error).__name__})", "") if loads else (" on this request", ", under the request id")
    return Fault(f"{what} failed{when}.", hint=f"The log of the service says why{where}.")
