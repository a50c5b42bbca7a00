"""Runs a model: loads it, calls its forward, and generates a few tokens."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gptailor_merge.checking.finding import SENTENCE, Finding, not_tried, reason
from gptailor_merge.models.nesting import loaded_text_of
from gptailor_merge.models.reload import reload

NEW_TOKENS = 8


_PROMPT_TOKENS = 8


def check_inference(
    directory: Path, tokenizer: PreTrainedTokenizerBase | None, *, finite: bool
) -> list[Finding]:
    """Checks loading, a forward pass and generation; each is tried only where the one before is sound.

    Args:
        tokenizer: encodes the prompt, where there is one.
        finite: whether all weights are finite.
    """
    try:
        reloaded = reload(directory)
    except Exception as error:  # transformers' refusals share no base class; each is a finding
        failed = Finding("reload", "fail", f"transformers does not load it: {reason(error)}")
        return [failed, *not_tried("the model does not load", "forward", "generation")]
    if reloaded.problems:
        failed = Finding("reload", "fail", "; ".join(reloaded.problems))
        return [failed, *not_tried("part of the weights is random", "forward", "generation")]
    sound = Finding("reload", "ok", "no missing, unexpected or mismatched keys")
    if reloaded.extras:
        listed = ", ".join(reloaded.extras[:3]) + (", …" if len(reloaded.extras) > 3 else "")
        sound = Finding("reload", "warn", f"stored and no part of the model, which loads without: {listed}")
    if not finite:
        return [sound, *not_tried("the values are not finite", "forward", "generation")]
    model = reloaded.model.eval()
    if obstacle := _obstacle_to_text(model):
        return [sound, *not_tried(f"{type(model).__name__} {obstacle}", "forward", "generation")]
    prompt = _prompt(tokenizer, model.get_input_embeddings().weight.shape[0])
    forward = _forward(model, prompt)
    if forward.verdict == "fail":
        return [sound, forward, *not_tried("forward fails", "generation")]
    return [sound, forward, _generation(model, prompt)]


def _obstacle_to_text(model: PreTrainedModel) -> str | None:
    """Returns why a model cannot go on with a text alone, the rest of a sentence; None if it can."""
    if model.config.is_encoder_decoder:
        return "is an encoder with a decoder"
    if not model.can_generate():
        return "does not generate"
    parameters = inspect.signature(model.forward).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    needed = [name for name in required if name != "input_ids"]
    return f"needs {' and '.join(needed)} as well" if needed else None


def _prompt(tokenizer: PreTrainedTokenizerBase | None, rows: int) -> torch.Tensor:
    """Returns a few token ids, shape (1, n): a sentence, or any ids where no tokenizer fits the model."""
    tokens = tokenizer.encode(SENTENCE) if tokenizer is not None else []
    if not tokens or max(tokens) >= rows:
        tokens = [index % rows for index in range(1, _PROMPT_TOKENS + 1)]
    return torch.tensor([tokens[:_PROMPT_TOKENS]])


@torch.inference_mode()
def _forward(model: PreTrainedModel, prompt: torch.Tensor) -> Finding:
    try:
        logits = model(input_ids=prompt).logits
    except Exception as error:  # a model's own code, on weights that may be anything
        return Finding("forward", "fail", f"breaks: {reason(error)}")
    rows = getattr(loaded_text_of(model.config), "vocab_size", logits.shape[-1])
    expected = [1, prompt.shape[1], rows]
    if list(logits.shape) != expected:
        return Finding("forward", "fail", f"logits of the shape {list(logits.shape)}, expected {expected}")
    if not bool(torch.isfinite(logits).all()):
        return Finding("forward", "fail", f"{prompt.shape[1]} tokens give logits that are not finite")
    return Finding("forward", "ok", f"{prompt.shape[1]} tokens give finite logits of the shape {expected}")


@torch.inference_mode()
def _generation(model: PreTrainedModel, prompt: torch.Tensor) -> Finding:
    """Generates greedily with and without a KV cache, which keeps entries by the index of the layer."""
    model.generation_config = GenerationConfig()  # keeps the model from ending early or sampling

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
        cached, uncached = greedy(use_cache=True), greedy(use_cache=False)
    except Exception as error:  # a model's own code
        return Finding("generation", "fail", f"breaks: {reason(error)}")
    with_cache, without = (output.sequences[0, prompt.shape[1] :] for output in (cached, uncached))
    different = (with_cache != without).nonzero().flatten().tolist()
    if different and not _near_tie(cached.logits[different[0]], uncached.logits[different[0]]):
        return Finding(
            "generation",
            "fail",
            f"token {different[0] + 1} of {NEW_TOKENS} differs with and without the KV cache; "
            "a layer may read the cache of another",
        )
    sentence = f"{NEW_TOKENS} tokens, the same with and without the KV cache"
    if different:
        sentence = (
            f"with and without the KV cache the same up to token {different[0]}, then a tie in rounding"
        )
    if len(set(without.tolist())) == 1:
        sentence += "; the output repeats one token"
    return Finding("generation", "ok", sentence)


def _near_tie(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Tells whether logits differ by no more than rounding, which may swap two tokens."""
    tolerance = 0.05 if torch.finfo(first.dtype).bits < 32 else 1e-3
    return bool((first - second).abs().max() <= tolerance * first.abs().max())
