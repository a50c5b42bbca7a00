"""What a card asks to cite."""

from __future__ import annotations

CITATIONS = """\
@inproceedings{su2026gptailor,
  title = {{GPTailor}: Large Language Model Pruning Through Layer Cutting and Stitching},
  author = {Su, Guinan and Shen, Li and Yin, Lu and Liu, Shiwei and Yang, Yanwu and Geiping, Jonas},
  booktitle = {International Conference on Learning Representations},
  year = {2026},
  url = {https://arxiv.org/abs/2506.20480}
}
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
