"""Stop texts across any cut of the stream."""

from hypothesis import example, given
from hypothesis import strategies as st

from services.llm_longctx.serving.stop_strings import StopStringFilter

TEXT = st.text("ab\n", max_size=20)


@given(st.lists(TEXT, max_size=8), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4))
@example(["aa", "ab"], ["aab"])
@example(["ab", "a", "b"], ["abab", "b\n"])
@example(["ab", "b"], ["abb", "b"])
def test_what_is_shown_is_the_text_before_the_first_stop_that_is_complete(pieces, stops):
    watch, come, known = StopStringFilter(stops), "", None
    shown = ""
    for piece in pieces:
        come += piece
        met = [come.find(stop) for stop in stops if stop in come]
        known = come[: min(met)] if met and known is None else known
        shown += watch.feed(piece)
        assert not any(stop in shown for stop in stops)
    assert shown + watch.end() == (come if known is None else known)
    assert watch.is_hit == (known is not None)


def test_only_what_may_begin_a_stop_is_held_back():
    watch = StopStringFilter(["END"])
    assert [watch.feed("one E"), watch.feed("N"), watch.feed("Q E"), watch.end()] == ["one ", "", "ENQ ", "E"]
