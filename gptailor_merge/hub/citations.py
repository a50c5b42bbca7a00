"""The papers that a card asks to cite."""

from __future__ import annotations

from gptailor_merge.host import names_and_commands

_GPTAILOR = """\
@inproceedings{su2026gptailor,
  title = {{GPTailor}: Large Language Model Pruning Through Layer Cutting and Stitching},
  author = {Su, Guinan and Shen, Li and Yin, Lu and Liu, Shiwei and Yang, Yanwu and Geiping, Jonas},
  booktitle = {International Conference on Learning Representations},
  year = {2026},
  url = {https://arxiv.org/abs/2506.20480}
}"""


CITATIONS = f"{_GPTAILOR}\n{names_and_commands.CITATION}"
"""BibTeX."""
