"""Texts for properties, many of which look like something else in one kind of YAML or another."""

from hypothesis import strategies as st

_LOOKING_LIKE_NUMBERS = ["1e5", "12e4567", "-2E+3", "1.e1", ".5", "+7", "1_0", "007", "0x1f", "0b10", "1:30", "1:30.5"]
_LOOKING_LIKE_DATES = ["2026-11-28", "2026-11-28 09:30:00", "2026-11-28T09:30:00Z", "2026-13-45"]
_LOOKING_LIKE_OTHERS = ["null", "Null", "~", "true", "No", "on", ".inf", "-.INF", ".nan", "<<", "=", "- a", "a: b", "#"]

TEXT = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
    | st.text("0123456789+-.eE_:xb", min_size=1, max_size=7)
    | st.sampled_from([*_LOOKING_LIKE_NUMBERS, *_LOOKING_LIKE_DATES, *_LOOKING_LIKE_OTHERS])
)
