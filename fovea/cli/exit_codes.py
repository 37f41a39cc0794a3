"""Exit codes of the command line, so that scripts can tell a mistake from a service that is down.

1 is for an outcome: a job or some of several files failed, or the answer to the question is no.
"""

from __future__ import annotations

from fovea.errors import (
    BadInput,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    FoveaError,
    InvalidOption,
    NotFound,
    NotReady,
    PermissionDenied,
    QueueFull,
    RateLimited,
    Unauthenticated,
)

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

_CODES: tuple[tuple[type[FoveaError], int], ...] = (
    (InvalidOption, USAGE),
    (BadInput, REFUSED),
    (Conflict, REFUSED),
    (NotFound, NOT_FOUND),
    (Unauthenticated, NOT_ALLOWED),
    (PermissionDenied, NOT_ALLOWED),
    (RateLimited, NOT_ALLOWED),
    (QueueFull, UNAVAILABLE),
    (NotReady, UNAVAILABLE),
    (DeadlineExceeded, TIMED_OUT),
    (Cancelled, INTERRUPTED),
)


def choose_exit_code(error: FoveaError) -> int:
    """Choose the exit code of an error: that of its first class in the list; 8 for any other."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), INTERNAL)
