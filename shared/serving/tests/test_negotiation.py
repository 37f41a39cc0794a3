"""Accept headers are read as RFC 9110 says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.serving.http.errors import NotAcceptable
from shared.serving.http.negotiation import choose

OFFERED = ["application/json", "image/png", "image/webp"]


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"), ("", "application/json"), ("*/*", "application/json"), ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"), ("image/*", "image/png"), ("image/webp, image/png;q=0.5", "image/webp"),
        ("image/png;q=0.2, application/json;q=0.1", "image/png"), ("image/png;level=1;q=0.7", "image/png"),
        ("image/*;q=0.9, image/png;q=0.1, */*;q=0.2", "image/webp"), ("application/json;q=0, */*", "image/png"),
        ("text/html, application/xhtml+xml, */*;q=0.8", "application/json"),
    ],
)  # fmt: skip
def test_best_liked_offer_is_chosen(accept, chosen):
    assert choose(accept, OFFERED) == chosen


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "image/png;q=x", "video/*", "*/*;q=0"])
def test_nothing_that_fits_is_said_with_what_is_offered(accept):
    with pytest.raises(NotAcceptable) as refused:
        choose(accept, OFFERED)
    assert refused.value.status == 406
    assert "image/webp" in refused.value.hint


@given(accept=st.text(alphabet="abcimage/*pngjson,;q=.0159 ", max_size=60))
def test_any_header_chooses_an_offer_or_is_refused(accept):
    try:
        assert choose(accept, OFFERED) in OFFERED
    except NotAcceptable:
        assert accept.strip()


@given(order=st.permutations(OFFERED))
def test_among_equals_the_first_offered_wins(order):
    assert choose(", ".join(reversed(order)), order) == order[0]
