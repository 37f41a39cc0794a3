"""Content negotiation: chooses a response's media type from the `Accept` header."""

from collections.abc import Sequence

from shared.serving.http.errors import NotAcceptable


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """Choose the offered type, best first, with the highest quality in the header `Accept`; among equals the first.

    The header has q-values (RFC 9110, section 12.5.1); none means anything. Raises NotAcceptable: nothing fits; the
    detail lists what is offered.
    """
    if not accept or not accept.strip():
        return offered[0]
    ranges = [_range(part) for part in accept.split(",") if part.strip()]
    ranked = [(_quality(media, ranges), -place) for place, media in enumerate(offered)]
    quality, place = max(ranked)
    if quality <= 0:
        raise NotAcceptable(f"Nothing here fits `Accept: {accept[:100]}`.", hint=f"Offered are {', '.join(offered)}.")
    return offered[-place]


def _range(part: str) -> tuple[str, float]:
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((value[2:] for value in parameters if value.startswith("q=")), "1")
    try:
        return media, min(max(float(quality), 0.0), 1.0)
    except ValueError:
        return media, 0.0


def _quality(media: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Quality of the most specific range that fits `media`."""
    family = f"{media.partition('/')[0]}/*"
    for accepted in (media, family, "*/*"):
        fitting = [quality for pattern, quality in ranges if pattern == accepted]
        if fitting:
            return max(fitting)
    return 0.0
