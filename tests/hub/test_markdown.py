"""Names in a card are text, whatever Markdown makes of them elsewhere."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from gptailor_merge.hub.card_tables import markdown
from gptailor_merge.hub.markdown import Markdown, code, fence, plain_text
from gptailor_merge.visible_text import visible_line

RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
NAMES = [
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](http://evil)",
    "**bold** _it_ __b__ ~~gone~~ `code`",
    "# heading",
    "- item",
    "1. item",
    "2) item",
    "> quoted",
    "===",
    "a | b",
    "a\n\n# b\n```\n",
    "&lt;b&gt; &#60;",
    "back\\slash\\*",
    "\u202eevil\u2066",
]
names = st.one_of(st.sampled_from(NAMES), st.text("ab_*`[]()<>&#|~-+=.!:/@$\\1 \n", max_size=20))


@given(names)
def test_a_name_is_shown_as_it_is(name: str) -> None:
    assert (
        RENDERER.render(f"- x\n- {plain_text(name)}\n").splitlines()[2:]
        == (
            [
                f"<li>{html.escape(visible_line(name).strip(), quote=True).replace('&#x27;', chr(39))}</li>",
                "</ul>",
            ]
        )
        or not visible_line(name).strip()
    )
    shown = RENDERER.render(f"x {plain_text(name)} x")
    assert re.sub(r"\s+", " ", html.unescape(re.sub(r"</?p>", "", shown))).strip() == re.sub(
        r"\s+", " ", f"x {visible_line(name)} x"
    )


@given(names, names)
def test_a_cell_holds_its_text(first: str, second: str) -> None:
    rendered = RENDERER.render(markdown(["a", "b"], [[first, second]]))
    cells = re.findall(r"<td[^>]*>(.*)</td>", rendered)
    assert [html.unescape(text) for text in cells] == [visible_line(name).strip() for name in (first, second)]


@given(names)
def test_a_block_ends_where_it_should(text: str) -> None:
    ticks = fence(text)
    (block,) = re.findall(
        r"<pre><code>(.*)</code></pre>", RENDERER.render(f"{ticks}\n{text}\n{ticks}\n\nx"), re.DOTALL
    )
    assert html.unescape(block) == f"{text}\n"


@given(names.filter(lambda name: name.strip() == name != ""))
def test_code_is_code(name: str) -> None:
    shown = RENDERER.renderInline(f"x {code(name)} x")
    assert html.unescape(shown) == f"x <code>{visible_line(name)}</code> x"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("$x$", r"\$x\$"),
        ("http://evil", "http&#58;//evil"),
        ("www.evil.com", "www&#46;evil.com"),
        ("@someone", "&#64;someone"),
        (":smile:", "&#58;smile:"),
        ("a_name, 95 % of it: 1.5 (-2.0)", "a_name, 95 % of it: 1.5 (-2.0)"),
    ],
)
def test_what_only_the_hub_reads_is_text_too(name: str, written: str) -> None:
    assert plain_text(name) == written


def test_markdown_of_ours_stays() -> None:
    assert plain_text(Markdown("**this model**")) == "**this model**"
