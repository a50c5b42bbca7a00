"""The Space: a model's layers, a recipe's map, and a search config, from configs and headers alone."""

from __future__ import annotations

import gradio as gr
from describe import config_page, model_page, recipe_page

STYLE = """
.map { overflow-x: auto; }
.map table { border-collapse: separate; border-spacing: 2px; font-size: 0.75rem; margin: 0; width: auto; }
.map table, .map th, .map td { border: 0 !important; }
.map th, .map td { padding: 0.25rem 0.3rem; text-align: center; white-space: nowrap; min-width: 1.4rem; }
.map th:first-child { text-align: left; position: sticky; left: 0; min-width: 5.5rem; max-width: 7.5rem;
  white-space: normal; overflow-wrap: anywhere; background: var(--body-background-fill); }
"""

INTRODUCTION = """# GPTailor
Cut a family of finetunes into one smaller model: some layers go, some are taken from one member, some are \
merged from several. This page reads configs and headers only; a search runs on your machine, by \
`pip install gptailor-merge`.
"""

RECIPE = """merge_method: tailor
base_model: Qwen/Qwen2.5-1.5B
dtype: bfloat16
slices:
  - sources: [{model: Qwen/Qwen2.5-1.5B-Instruct, layer_range: [0, 20]}]
    parameters: {op: select}
  - sources: [{model: Qwen/Qwen2.5-1.5B, layer_range: [20, 24]}]
    parameters: {op: remove}
  - sources:
      - {model: Qwen/Qwen2.5-1.5B, layer_range: [24, 28]}
      - {model: Qwen/Qwen2.5-Coder-1.5B, layer_range: [24, 28], parameters: {weight: 0.6}}
    parameters: {op: merge, method: task_arithmetic}
"""


def page() -> gr.Blocks:
    """Lays out the page."""
    with gr.Blocks(title="GPTailor") as blocks:
        gr.Markdown(INTRODUCTION)
        with gr.Tab("A model"):
            name = gr.Textbox(label="Hub id", placeholder="Qwen/Qwen3-0.6B-Base", max_lines=1)
            look = gr.Button("Read its headers", variant="primary")
            facts, layers = gr.Markdown(), gr.HTML()
            gr.on([look.click, name.submit], model_page, name, [facts, layers], api_name="model")
        with gr.Tab("A recipe"):
            text = gr.Code(RECIPE, language="yaml", label="Recipe", lines=12)
            check = gr.Button("Check and draw it", variant="primary")
            verdict, drawn = gr.Markdown(), gr.HTML()
            check.click(recipe_page, text, [verdict, drawn], api_name="recipe")
        with gr.Tab("A search"):
            base = gr.Textbox(label="Base", placeholder="Qwen/Qwen2.5-1.5B", max_lines=1)
            variants = gr.Textbox(label="Variants, one a line", lines=3)
            target = gr.Slider(0.3, 0.95, value=0.75, step=0.05, label="Share of parameters to keep")
            write = gr.Button("Write the search config", variant="primary")
            config, then = gr.Code(language="yaml", label="search.yml"), gr.Markdown()
            write.click(config_page, [base, variants, target], [config, then], api_name="search")
    return blocks


if __name__ == "__main__":
    page().launch(css=STYLE)
