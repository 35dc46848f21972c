"""The page of configuration keys says what the code says."""

from pathlib import Path

from card_scale import config_reference


def test_the_page_is_current():
    page = Path(__file__).parents[1] / "docs/configuration.md"
    assert page.read_text() == config_reference.markdown(), (
        "run: python -m card_scale.config_reference > docs/configuration.md"
    )
