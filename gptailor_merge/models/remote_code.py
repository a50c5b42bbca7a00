"""Words what transformers says of models; nobody here can take its advice to run their code."""

from __future__ import annotations

REFUSAL = (
    "it needs Python code from its repository, which is never run here; take a model whose architecture and "
    "tokenizer transformers itself has"
)
"""Says why a model with remote code is not loaded."""


def words_of(error: BaseException) -> str:
    """Returns an error's message on one line.

    >>> words_of(ValueError("Please pass the argument `trust_remote_code=True` to allow custom code."))[:44]
    'it needs Python code from its repository, wh'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return REFUSAL if "trust_remote_code" in text else text
