"""Does a model directory run: reload, a forward, a few tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gptailor_merge.checking.finding import SENTENCE, Finding, not_tried, reason
from gptailor_merge.models.reload import reload

NEW_TOKENS = 8


_PROMPT_TOKENS = 8


def running(directory: Path, tokenizer: PreTrainedTokenizerBase | None, *, finite: bool) -> list[Finding]:
    """Reload, a forward, and a few tokens; the later ones only where the earlier ones are sound."""
    try:
        reloaded = reload(directory)
    except Exception as error:  # transformers' refusals have no common base; each is a finding
        failed = Finding("reload", "fail", f"transformers does not load it: {reason(error)}")
        return [failed, *not_tried("the model does not load", "forward", "generation")]
    if reloaded.problems:
        failed = Finding("reload", "fail", "; ".join(reloaded.problems))
        return [failed, *not_tried("part of the weights is random", "forward", "generation")]
    sound = Finding("reload", "ok", "no missing, unexpected or mismatched keys")
    if not finite:
        return [sound, *not_tried("the values are not finite", "forward", "generation")]
    model = reloaded.model.eval()
    prompt = _prompt(tokenizer, int(model.config.get_text_config().vocab_size))
    forward = _forward(model, prompt)
    if forward.verdict == "fail":
        return [sound, forward, *not_tried("forward fails", "generation")]
    return [sound, forward, _generation(model, prompt)]


def _prompt(tokenizer: PreTrainedTokenizerBase | None, rows: int) -> torch.Tensor:
    """A few token ids: of a sentence, or any where the tokenizer does not fit the model."""
    tokens = tokenizer.encode(SENTENCE) if tokenizer is not None else []
    if not tokens or max(tokens) >= rows:
        tokens = [index % rows for index in range(1, _PROMPT_TOKENS + 1)]
    return torch.tensor([tokens[:_PROMPT_TOKENS]])


@torch.inference_mode()
def _forward(model: PreTrainedModel, prompt: torch.Tensor) -> Finding:
    try:
        logits = model(prompt).logits
    except Exception as error:  # a model's own code, on weights that may be anything
        return Finding("forward", "fail", f"breaks: {reason(error)}")
    expected = [1, prompt.shape[1], model.config.get_text_config().vocab_size]
    if list(logits.shape) != expected:
        return Finding("forward", "fail", f"logits of the shape {list(logits.shape)}, expected {expected}")
    if not bool(torch.isfinite(logits).all()):
        return Finding("forward", "fail", f"{prompt.shape[1]} tokens give logits that are not finite")
    return Finding("forward", "ok", f"{prompt.shape[1]} tokens give finite logits of the shape {expected}")


@torch.inference_mode()
def _generation(model: PreTrainedModel, prompt: torch.Tensor) -> Finding:
    """Greedy, with and without a KV cache: the cache goes by each layer's own index."""
    model.generation_config = GenerationConfig()  # no end of text, no sampling

    def greedy(*, use_cache: bool) -> Any:
        settings = GenerationConfig(
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)

    try:
        cached, plain = greedy(use_cache=True), greedy(use_cache=False)
    except Exception as error:  # a model's own code
        return Finding("generation", "fail", f"breaks: {reason(error)}")
    ours, theirs = (run.sequences[0, prompt.shape[1] :] for run in (cached, plain))
    differ = (ours != theirs).nonzero().flatten().tolist()
    if differ and not _near_tie(cached.logits[differ[0]], plain.logits[differ[0]]):
        return Finding(
            "generation",
            "fail",
            f"token {differ[0] + 1} of {NEW_TOKENS} differs with and without the KV cache; "
            "a layer may read the cache of another",
        )
    said = f"{NEW_TOKENS} tokens, the same with and without the KV cache"
    if differ:
        said = f"with and without the KV cache the same up to token {differ[0]}, then a tie in rounding"
    if len(set(theirs.tolist())) == 1:
        said += "; the output repeats one token"
    return Finding("generation", "ok", said)


def _near_tie(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether logits differ by no more than rounding, which may turn the order of two tokens."""
    tolerance = 0.05 if torch.finfo(one.dtype).bits < 32 else 1e-3
    return bool((one - other).abs().max() <= tolerance * one.abs().max())
