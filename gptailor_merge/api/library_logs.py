"""Switches the libraries' own output off."""

from __future__ import annotations

import logging

from gptailor_merge.host.names_and_commands import LIBRARY


def quiet_libraries() -> None:
    """Switches off progress bars and notices of transformers, mergekit, lm-eval, bitsandbytes and the Hub.

    quiet_libraries()
    run = search("search.yml", "runs/first")
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for library in (LIBRARY, "bitsandbytes", "lm_eval"):
        logging.getLogger(library).setLevel(logging.ERROR)
