"""Exit codes of the command line, so that scripts can tell a mistake from a service that is down.

1 is for an outcome: a job or some of several files failed, or the answer to the question is no.
"""

from fovea import errors

OUTCOME = 1
USAGE = 2
REFUSED = 3
NOT_FOUND = 4
NOT_ALLOWED = 5
UNAVAILABLE = 6
TIMED_OUT = 7
INTERNAL = 8
INTERRUPTED = 130

HELP = (
    "Exit codes: 0 done · 1 a job or some files failed, or a negative verdict · 2 wrong usage or option · "
    "3 input refused · 4 not found · 5 not allowed (key, scope, quota) · 6 unavailable or busy · 7 timed out · "
    "8 internal error · 130 interrupted"
)

_KINDS: dict[int, tuple[type[errors.FoveaError], ...]] = {
    USAGE: (errors.InvalidOption,),
    REFUSED: (errors.BadInput, errors.Conflict),
    NOT_FOUND: (errors.NotFound,),
    NOT_ALLOWED: (errors.Unauthenticated, errors.PermissionDenied, errors.RateLimited),
    UNAVAILABLE: (errors.QueueFull, errors.NotReady, errors.StorageFull),
    TIMED_OUT: (errors.DeadlineExceeded,),
    INTERRUPTED: (errors.Cancelled,),
}


def choose_exit_code(error: errors.FoveaError) -> int:
    """Choose the exit code of an error: that of its first class in the list; 8 for any other."""
    return next((code for code, kinds in _KINDS.items() if isinstance(error, kinds)), INTERNAL)
