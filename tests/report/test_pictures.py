"""The figures as PNG files."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from gptailor_merge.report import pictures
from gptailor_merge.report.palette import LIGHT
from gptailor_merge.report.pictures import DPI, WIDTH, draw_pictures
from gptailor_merge.report.view import view
from gptailor_merge.runs.run import Run
from tests.report.runs import FAMILY, one_recipe, perplexities, write

Runs = dict[str, Run]


def test_each_kind_of_run_has_its_pictures(runs: Runs, tmp_path: Path) -> None:
    drawn = {name: draw_pictures(view(runs[name].record()), tmp_path / name) for name in ("search", "front")}
    files = {name: [picture.file for picture in some] for name, some in drawn.items()}
    assert files == {
        "search": ["held-out.png", "map.png", "progress.png"],
        "front": ["held-out.png", "map.png", "front.png", "progress.png"],
    }
    for name, some in drawn.items():
        assert sorted(file.name for file in (tmp_path / name).iterdir()) == sorted(files[name])
        for picture in some:
            with Image.open(tmp_path / name / picture.file) as image:
                assert image.format == "PNG"
                assert image.width == WIDTH * DPI
                colours = [colour for _, colour in image.convert("RGB").getcolors(2**24) or ()]
            # What was found has the accent, which the frame of an empty chart has not.
            if picture.file != "map.png":
                assert tuple(int(LIGHT.accent[n : n + 2], 16) for n in (1, 3, 5)) in colours
            assert picture.title
            assert picture.alt.endswith(".")


def test_the_same_run_gives_the_same_bytes(runs: Runs, tmp_path: Path) -> None:
    first, second = (draw_pictures(view(runs["search"].record()), tmp_path / name) for name in ("a", "b"))
    assert first == second
    for picture in first:
        assert (tmp_path / "a" / picture.file).read_bytes() == (tmp_path / "b" / picture.file).read_bytes()


def test_names_are_no_mathematics_and_stay_in_the_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dollar sign begins a formula in matplotlib, which may even be wrong; an underscore hides a label."""
    figures: dict[str, Figure] = {}
    save = pictures._save

    def keep(figure: Figure, file: Path) -> None:
        save(figure, file)
        figures[file.name] = figure

    monkeypatch.setattr(pictures, "_save", keep)
    odd, hidden = "$\\frac$", "_x\x1b[2J"
    variants = {odd: FAMILY["math"], hidden: FAMILY["code"]}
    scores = perplexities(**{"base": 1.0, odd: 1.1, hidden: 1.2, "found": 1.5})
    for by_name in scores.values():
        by_name["perplexity"] = {f"{odd} {n}": score for n, score in by_name["perplexity"].items()}  # type: ignore[index]
    run = write(
        tmp_path / "run", one_recipe(), held_out=scores, family={"base": FAMILY["base"], "variants": variants}
    )
    draw_pictures(view(run.record()), tmp_path / "pictures")
    for file in ("held-out.png", "map.png"):
        texts = [text.get_text() for text in figures[file].findobj(Text)]
        assert any(odd in text for text in texts), texts
        assert any("_x\\x1b[2J" in text.replace("\n", "") for text in texts), texts


def test_a_picture_tells_of_no_path(tmp_path: Path) -> None:
    run = write(tmp_path / "run", one_recipe(), held_out=perplexities(base=1.0, found=1.5))
    for picture in draw_pictures(view(run.record()), tmp_path / "pictures"):
        assert b"alice" not in (tmp_path / "pictures" / picture.file).read_bytes()
        assert "alice" not in picture.alt


def test_alternative_texts_say_what_is_seen(tmp_path: Path) -> None:
    run = write(tmp_path / "run", one_recipe(), held_out=perplexities(base=1.0, found=1.5))
    told = {picture.file: picture.alt for picture in draw_pictures(view(run.record()), tmp_path / "pictures")}
    assert told["map.png"] == "Map of the recipe: 4 slots, without layer 1, from base, code and math."
    assert told["held-out.png"].startswith("Held-out perplexity: a 4.482 (base 2.718), b 12.2 (base 7.389)")


@pytest.mark.parametrize("name", ["search", "front"])
def test_no_text_is_cut_or_lies_on_another(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, name: str, tmp_path: Path
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "_save", lambda figure, file: figures.append(figure))
    draw_pictures(view(runs[name].record()), tmp_path)
    assert len(figures) == (4 if view(runs[name].record()).axes else 3)
    for figure in figures:
        canvas = figure.canvas
        assert isinstance(canvas, FigureCanvasAgg)
        canvas.draw()
        for axes in figure.axes:
            ticks = [
                [label for label in axis.get_ticklabels() if label.get_text() and _within(axis, label)]
                for axis in (axes.xaxis, axes.yaxis)
            ]
            every = {t for axis in (axes.xaxis, axes.yaxis) for t in axis.get_ticklabels(which="both")}
            others = [t for t in axes.findobj(Text) if isinstance(t, Text) and t not in every]
            drawn = [t for t in others if t.get_visible() and t.get_text()] + ticks[0] + ticks[1]
            assert len(drawn) > 4
            for text in drawn:
                box = text.get_window_extent()
                assert box.x0 >= -1, text
                assert box.y0 >= -1, text
                assert box.x1 <= figure.bbox.x1 + 1, text
                assert box.y1 <= figure.bbox.y1 + 1, text
            for labels in ticks:
                extents = [label.get_window_extent() for label in labels]
                assert not [pair for pair in combinations(extents, 2) if pair[0].overlaps(pair[1])]


def _within(axis: Axis, label: Text) -> bool:
    """Ticks beyond the limits have labels that are not drawn."""
    low, high = sorted(axis.get_view_interval())
    position = label.get_position()[0 if axis.axis_name == "x" else 1]
    return bool(low <= position <= high)
