"""Opens pages in Chromium and measures them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = os.environ.get("GPTAILOR_BROWSER") == "required"
"""True where a machine without a browser fails the tests instead of skipping them."""

LOOK = """() => {
  const box = (one) => { const r = one.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const charts = {};
  for (const chart of document.querySelectorAll(".chart")) {
    const marks = chart.querySelectorAll(
      ".scatterlayer .point, .scatterlayer .js-line, .barlayer .point path, .heatmaplayer image");
    charts[chart.id] = {
      box: box(chart),
      marks: Array.from(marks, box),
      labels: {
        x: Array.from(chart.querySelectorAll(".xtick text"), box),
        y: Array.from(chart.querySelectorAll(".ytick text"), box),
        titles: Array.from(chart.querySelectorAll(".g-xtitle text, .g-ytitle text"), box),
      },
      ground: getComputedStyle(chart.querySelector(".main-svg")).backgroundColor,
    };
  }
  return {
    charts: charts,
    width: document.documentElement.scrollWidth,
    window: innerWidth,
    ground: getComputedStyle(document.body).backgroundColor,
    text: document.body.innerText,
  };
}"""


@dataclass
class Seen:
    """The complaints of the browser, and the addresses that it fetched."""

    complaints: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser; where there is none the test is skipped, or fails if one is required."""
    executable = next((path for name in NAMES if (path := shutil.which(name))), None)
    if executable is None:
        message = f"no browser; looked for {', '.join(NAMES)}"
        pytest.fail(message) if REQUIRED else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def opened(chromium: Any, url: str, *, width: int, scheme: str) -> Iterator[tuple[Any, Seen]]:
    """Opens a page at a width, light or dark, and records what the browser sees."""
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, seen = context.new_page(), Seen()
    page.on("console", lambda m: seen.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("request", lambda request: seen.fetched.append(request.url))
    try:
        page.goto(url)
        yield page, seen
    finally:
        context.close()


def look(page: Any) -> Any:
    """Measures a page as it is now; boxes are [left, top, right, bottom] in pixels."""
    return page.evaluate(LOOK)
