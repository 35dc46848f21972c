"""YAML whose keys stand once: what is refused, and that everything else reads as plain YAML does."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.config import strict_yaml
from tests.config.texts import TEXT


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1\nb: 2\na: 3\n", "line 3 repeats the key a of line 1"),
        ("a: 1\n'a': 1\n", "line 2 repeats the key a of line 1"),
        ("arms:\n  ar: {x: 1}\n  card: {}\n  ar: {x: 1}\n", "line 4 repeats the key ar of line 2"),
        ("rules:\n  - where: {arm: a, arm: b}\n", "line 2 repeats the key arm of line 2"),
        ("{a: {3: 1, b: 2, 3: 2}}", "line 1 repeats the key 3 of line 1"),
    ],
)
def test_a_repeated_key_is_refused_with_its_lines(text, message):
    with pytest.raises(yaml.YAMLError, match=message):
        strict_yaml.load(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: {x: 1}\nb: {x: 1}\n",
        "- {x: 1}\n- {x: 2}\n",
        # A key beside those that << brings in is YAML's way to change one of them.
        "p: {q: &b {<<: {x: 1}, x: 2}}\no: {<<: *b, x: 3}\n",
        "a: &same [1, 2]\nb: *same\n",
        "3: number\n'3': text\n",
        "",
        "[7, -7, +7, 1_000, 1.5, 1., 1.5e+3, .inf, -.inf, true, yes, null, ~, 1.2.3, '1']",
    ],
)
def test_everything_else_reads_as_plain_yaml(text):
    assert strict_yaml.load(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text, value",
    [
        ("3e-4", 3e-4),
        ("1e6", 1e6),
        ("-2E+3", -2e3),
        ("0", 0),
        ("0.1", 0.1),
        ("-.5", -0.5),
        # Two readers would not agree on these: they are refused where a number is wanted.
        ("0100", "0100"),
        ("-007", "-007"),
        ("0x10", "0x10"),
        ("0b10", "0b10"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("2026-11-28", "2026-11-28"),
        ("2026-13-45", "2026-13-45"),
    ],
)
def test_numbers_are_decimal_and_dates_are_text(text, value):
    assert strict_yaml.load(text) == value
    assert type(strict_yaml.load(text)) is type(value)


@given(st.lists(TEXT, max_size=8))
@settings(max_examples=60, deadline=None)
def test_text_stays_text_here_and_for_plain_yaml(texts):
    tree = {text: text for text in texts}
    dumped = strict_yaml.dump(tree)
    assert strict_yaml.load(dumped) == yaml.safe_load(dumped) == tree
    assert list(strict_yaml.load(dumped)) == list(tree)


@pytest.mark.parametrize("value", [1e-5, 1e17, 3.0, -0.25, 7, -7, 10**30, True, None, [0.9, 0.95], float("inf")])
def test_other_values_stay_what_they_are(value):
    loaded = strict_yaml.load(strict_yaml.dump({"key": value}))["key"]
    assert (loaded, type(loaded)) == (value, type(value))


def test_only_plain_values_are_made():
    with pytest.raises(yaml.YAMLError):
        strict_yaml.load("!!python/object/apply:os.getcwd []")
