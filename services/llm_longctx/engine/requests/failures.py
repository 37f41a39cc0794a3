"""Failures of requests: what a caller may know of them."""

from fovea.errors import Fault, FoveaError, TooLarge
from shared import telemetry


def to_safe_error(error: Exception) -> FoveaError:
    """Return what a caller may know of a failure of ours; the rest goes to the log."""
    if isinstance(error, FoveaError):
        return error
    telemetry.log().error("engine failed", exc_info=error)
    detail = "The model failed on this request."
    return Fault(detail, hint="The log of the service says why.")


def too_large() -> TooLarge:
    """Return the error of a request that does not fit even alone."""
    return TooLarge("The request needs more memory for keys and values than this model has.")
