"""Says what cards, pages and instructions have to say of mergekit: names, commands and the citation."""

from __future__ import annotations

RECIPE = "mergekit_config.yml"
"""The file of a model directory that holds its recipe; mergekit calls its own the same."""


RECIPE_TITLE = "The recipe, as mergekit YAML"


TAGS = ("mergekit", "merge")
"""The Hub's tags for what mergekit made."""


STOCK_COMMAND = f"mergekit-yaml {RECIPE} DIR   # stock mergekit, with gptailor-merge installed"
"""Builds a published model with mergekit's own command."""


LIBRARY = "mergekit"
"""The name of its package, and of its logger."""


WRITTEN = "written by mergekit, reloaded, every tensor in place"
"""Says how a model on disk came about."""


FOREIGN = "A mergekit configuration, or one that the paper's authors published."
"""Says what can be imported as a recipe."""


PLAIN = "a mergekit without this package"
"""Says what an exported recipe is for."""


def plain_command(recipe: str, *, in_parts: bool) -> str:
    """Returns the command that makes the model of an exported recipe.

    >>> plain_command("recipe.yml", in_parts=False)
    'mergekit-yaml recipe.yml MODEL'

    Args:
        recipe: the file's name.
        in_parts: True where it holds several configurations.
    """
    if in_parts:
        return f"mergekit-multi {recipe} --out-path MODEL --intermediate-dir ./parts"
    return f"mergekit-yaml {recipe} MODEL"


CITATION = """\
@inproceedings{goddard2024mergekit,
  title = {Arcee's {MergeKit}: A Toolkit for Merging Large Language Models},
  author = {Goddard, Charles and Siriwardhana, Shamane and Ehghaghi, Malikeh and Meyers, Luke and
            Karpukhin, Vladimir and Benedict, Brian and McQuade, Mark and Solawetz, Jacob},
  booktitle = {Proceedings of the 2024 Conference on Empirical Methods in Natural Language Processing:
               Industry Track},
  pages = {477--485},
  year = {2024},
  url = {https://aclanthology.org/2024.emnlp-industry.36}
}"""
