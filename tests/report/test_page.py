"""A run's page: what it says, and how it looks in a browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from gptailor_merge.errors import InputError
from gptailor_merge.report.page import PageContent, content, page, write_report
from gptailor_merge.report.palette import DARK, LIGHT
from gptailor_merge.report.sections import sections
from gptailor_merge.report.view import view
from gptailor_merge.runs.run import Run
from tests.report.browser import look, opened
from tests.report.runs import FAMILY, deep, one_recipe, perplexities, write

Runs = dict[str, Run]
Box = list[float]


@pytest.fixture(scope="session")
def pages(runs: Runs) -> dict[str, Path]:
    """The pages of the search, with its baseline beside it, and of the front."""
    return {
        "search": write_report(runs["search"], [runs["random"]]),
        "front": write_report(runs["front"]),
    }


def embedded(file: Path) -> Any:
    """The figures in a page."""
    text = file.read_text(encoding="utf-8")
    match = re.search(r'<script id="figures" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


def test_it_says_what_the_journal_says(runs: Runs, pages: dict[str, Path]) -> None:
    summary = runs["search"].summary()
    text = pages["search"].read_text(encoding="utf-8").split("<noscript>")[0]
    assert summary.digest in text
    assert f"{summary.counts.tokens:,} tokens" in text
    found, base = (summary.held_out[model]["perplexity"]["total"] for model in ("found", "base"))
    assert f"held-out perplexity {found:.1f}, the base’s {base:.1f}." in text
    for model in ("base", "math", "code"):
        for value in summary.held_out[model]["perplexity"].values():
            assert f"{value:.1f}" in text


def test_its_figures_hold_what_the_journal_holds(runs: Runs, pages: dict[str, Path]) -> None:
    summary = runs["search"].summary()
    drawn = embedded(pages["search"])
    for theme in ("light", "dark"):
        of_found = drawn[theme]["held-out-0"]["data"][-1]
        assert of_found["name"] == "found"
        assert of_found["x"] == pytest.approx(list(summary.held_out["found"]["perplexity"].values()))
        best, random = drawn[theme]["progress-tokens"]["data"][-2:]
        assert best["y"][-1] == summary.loss
        assert (random["name"], random["y"][0]) == ("random", runs["random"].summary().loss)
        spent = [trace["x"][1] for trace in drawn[theme]["cost"]["data"]]
        assert sum(spent) == pytest.approx(1)


@pytest.mark.parametrize("name", ["search", "front"])
def test_every_chart_has_a_figure_that_plotly_takes(runs: Runs, pages: dict[str, Path], name: str) -> None:
    keys = [chart.key for section in sections(view(runs[name].record())) for chart in section.charts]
    drawn = embedded(pages[name])
    for theme in ("light", "dark"):
        assert sorted(drawn[theme]) == sorted(keys)
        for figure in drawn[theme].values():
            assert go.Figure(figure).data


def test_the_front_has_its_own_chart_and_table(runs: Runs, pages: dict[str, Path]) -> None:
    summary = runs["front"].summary()
    points = {row.recipe.stem for row in summary.front}
    text = pages["front"].read_text(encoding="utf-8")
    assert all(f"<td>{name}" in text for name in points)
    for position, objective in enumerate(("kl", "perplexity")):
        (front,) = [
            t
            for t in embedded(pages["front"])["light"][f"front-{position}"]["data"]
            if t["name"] == "the front"
        ]
        assert front["x"] == [row.scores["parameters"] for row in summary.front]
        assert front["y"] == pytest.approx([row.scores[objective] for row in summary.front])


def test_it_says_which_norms_are_fitted(tmp_path: Path) -> None:
    shown = replace(view(write(tmp_path, one_recipe()).record()), fitted_norms=(0, 2))
    captions = [section.caption for section in sections(shown) if section.key == "map"]
    assert [caption.endswith(" With fitted norms: slots 0 and 2.") for caption in captions] == [True]


def test_no_path_of_this_machine_is_in_it(runs: Runs, pages: dict[str, Path], tmp_path: Path) -> None:
    for file in pages.values():
        text = file.read_text(encoding="utf-8")
        assert "pytest-of" not in text
        assert str(runs["search"].path.parent) not in text
    # The content alone: plotly's program knows a colour aliceblue.
    failed = write(tmp_path / "run", one_recipe(), held_out=perplexities(base=1.0, found=1.5))
    shown = content(view(failed.record()))
    assert "org/code@v1" in shown.main
    assert "alice" not in shown.main + shown.figures
    assert "home" not in shown.main + shown.figures


def test_what_a_run_says_cannot_become_script(tmp_path: Path) -> None:
    """A warning or a name that is HTML stays text, in the page and in its figures."""
    evil = "</script><script>document.title = 'evil'</script>"
    held_out = perplexities(base=1.0, found=1.5)
    for scores in held_out.values():
        scores["perplexity"] = {evil: scores["perplexity"]["a"]}  # type: ignore[index]
    run = write(tmp_path / "run", one_recipe(), meta={"warnings": (evil,)}, held_out=held_out)
    text = write_report(run).read_text(encoding="utf-8")
    assert "document.title = 'evil'</script>" not in text
    assert "&lt;/script&gt;&lt;script&gt;" in text


def test_plotly_reads_no_tag_in_a_name(tmp_path: Path) -> None:
    evil = "<a href='https://evil'>x</a> & <b>y</b>\x1b[2J"
    variants = {evil: FAMILY["math"], "code": FAMILY["code"]}
    held_out = perplexities(**{"base": 1.0, evil: 1.1, "found": 1.5})
    run = write(
        tmp_path / "run",
        one_recipe(),
        held_out=held_out,
        family={"base": FAMILY["base"], "variants": variants},
    )
    shown = content(view(run.record()))
    figures = shown.figures.replace("\\u003c", "<")
    assert set(re.findall(r"<[^>]*>", figures)) <= {"<br>"}
    assert "&lt;a href='https://evil'>x&lt;/a> &amp; &lt;b>y&lt;/b>" in figures
    assert "x1b" in figures
    assert "\\u001b" not in figures
    assert "<a href" not in shown.main


def test_a_directory_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such journal; expected a run directory"):
        write_report(Run(tmp_path))


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("name", ["search", "front"])
def test_a_browser_draws_every_chart(
    chromium: Any, runs: Runs, pages: dict[str, Path], name: str, width: int
) -> None:
    """A telephone and a screen both show it, and the other theme when the system changes to that."""
    url = pages[name].as_uri()
    wanted = [chart.key for section in sections(view(runs[name].record())) for chart in section.charts]
    with opened(chromium, url, width=width, scheme="light") as (tab, seen):
        light = look(tab)
        tab.emulate_media(color_scheme="dark")
        tab.wait_for_function(REDRAWN)
        dark = look(tab)
    assert seen.complaints == []
    assert seen.fetched == [url]
    for theme, measured in ((LIGHT, light), (DARK, dark)):
        assert measured["width"] <= measured["window"] == width
        assert measured["ground"] == rgb(theme.surface)
        assert sorted(measured["charts"]) == sorted(wanted)
        for key, chart in measured["charts"].items():
            assert chart["ground"] == rgb(theme.surface), key
            check_chart(key, chart, width)


REDRAWN = """() => getComputedStyle(document.querySelector(".main-svg")).backgroundColor
    === getComputedStyle(document.body).backgroundColor"""


def rgb(colour: str) -> str:
    """Writes a colour as a browser does."""
    return f"rgb({', '.join(str(int(colour[n : n + 2], 16)) for n in (1, 3, 5))})"


def check_chart(key: str, chart: dict[str, Any], width: int) -> None:
    """It has marks and lies within the page."""
    assert [mark for mark in chart["marks"] if mark[0] < mark[2] or mark[1] < mark[3]], key
    assert 0 <= chart["box"][0] < chart["box"][2] <= width
    check_labels(key, chart)


def check_labels(key: str, chart: dict[str, Any]) -> None:
    """They lie within their chart and apart from each other."""
    left, top, right, bottom = chart["box"]
    for axis, labels in chart["labels"].items():
        assert len(labels) > 1 or axis == "titles", (key, axis)
        for label in labels:
            assert left - 1 <= label[0] < label[2] <= right + 1, (key, axis, label)
            assert top - 1 <= label[1] < label[3] <= bottom + 1, (key, axis, label)
        assert not [pair for pair in combinations(labels, 2) if overlap(*pair)], (key, axis)


def overlap(first: Box, second: Box) -> bool:
    """Tells whether two boxes overlap by more than a pixel."""
    wide = min(first[2], second[2]) - max(first[0], second[0])
    high = min(first[3], second[3]) - max(first[1], second[1])
    return wide > 1 and high > 1


@pytest.mark.parametrize("depth", [40, pytest.param(80, marks=pytest.mark.weekly)])
def test_a_map_that_is_too_wide_is_scrolled_and_the_page_is_not(
    chromium: Any, tmp_path: Path, depth: int
) -> None:
    file = write_report(write(tmp_path / "run", [deep(depth)]))
    with opened(chromium, file.as_uri(), width=375, scheme="light") as (tab, seen):
        measured = look(tab)
    assert seen.complaints == []
    assert measured["width"] == 375
    for key in ("map", "agreement"):
        chart = measured["charts"][key]
        assert chart["box"][2] > 375
        check_labels(key, chart)


def test_a_page_without_figures_is_a_page(chromium: Any, tmp_path: Path) -> None:
    """The page of a run before its first candidate was scored."""
    shown: PageContent = content(view(write(tmp_path / "run", one_recipe()[:1], done=False).record()))
    file = tmp_path / "page.html"
    file.write_text(page(shown), encoding="utf-8")
    with opened(chromium, file.as_uri(), width=375, scheme="light") as (tab, seen):
        measures = look(tab)
    assert seen.complaints == []
    assert list(measures["charts"]) == ["cost"]
    assert "No candidate has been scored yet." in measures["text"]
