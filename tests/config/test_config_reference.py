"""The page of configuration keys says what the code says."""

from pathlib import Path

from card_scale.config import reference as config_reference


def test_the_page_is_current():
    page = Path(__file__).parents[2] / "docs/configuration.md"
    assert page.read_text() == config_reference.markdown(), (
        "run: python -m card_scale.config.reference > docs/configuration.md"
    )
