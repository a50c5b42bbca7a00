"""Colours can be told apart from what they lie on."""

from __future__ import annotations

import pytest

from gptailor_merge.report.palette import DARK, LIGHT, Theme, contrast, mixed, readable


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_marks_stand_out(theme: Theme) -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for what is drawn."""
    for ground in (theme.surface, theme.tile):
        assert min(contrast(ink, ground) for ink in (theme.ink, theme.muted, theme.accent)) >= 4.5
        assert min(contrast(hue, ground) for hue in (theme.base, *theme.variants)) >= 3
    assert min(contrast(theme.outcomes[status], theme.surface) for status in ("scored", "dropped")) >= 3
    for hue in (theme.accent, theme.base, *theme.variants):
        for share in range(11):
            cell = mixed(theme.tile, hue, share / 10)
            assert contrast(readable(cell), cell) >= 4.5
    assert mixed("#000000", "#ffffff", 1.0) == "#ffffff"
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
