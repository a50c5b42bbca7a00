"""Train the built-in family: a Llama-shaped base and three finetunes of it; or a larger one.

    python benchmarks/train_family.py TEXT_DIR OUT_DIR [--steps N] [--tune-steps N]
    python benchmarks/train_family.py TEXT_DIR OUT_DIR --layers 24 --width 256 --device cuda
    python benchmarks/train_family.py TEXT_DIR OUT_DIR --tiny

TEXT_DIR holds stories.jsonl, encyclopedia.jsonl, maths.jsonl and code.jsonl (objects with `text`).
Every document goes into exactly one of train, calibration and held-out; whole documents are kept
out of training, and only a window of each of those is written to disk.

A finetune goes on with all four domains, its own three times as often as each of the others. So it
stays close to its siblings, and their average is better than the base on every domain.

OUT_DIR receives family/{base,stories,maths,code}/, calibration/*.jsonl, held-out/*.jsonl and
training.json (settings, seconds, held-out loss per model and domain).
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from common import Tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DOMAINS = ("stories", "encyclopedia", "maths", "code")
VARIANTS = ("stories", "maths", "code")
END = "<|endoftext|>"
SEED = 20251124
WINDOW = 256  # tokens in a training sequence
BATCH = 8  # sequences in a training step
OWN_SHARE = 0.5  # of a finetune's training sequences; the other domains share the rest evenly
EXCERPT = 3000  # characters of a kept-out document that are written to disk
CALIBRATION_CHARS = 60_000
HELD_OUT_CHARS = 60_000


def split(texts: list[str], rng: random.Random) -> tuple[list[str], list[str], list[str]]:
    """Divides documents into train, calibration and held-out; the last two are excerpts."""
    texts = sorted(set(texts))
    rng.shuffle(texts)
    kept_out: list[list[str]] = []
    for budget in (CALIBRATION_CHARS, HELD_OUT_CHARS):
        part: list[str] = []
        while sum(map(len, part)) < budget:
            text = texts.pop()
            start = rng.randrange(max(1, len(text) - EXCERPT)) if len(text) > EXCERPT else 0
            if start:  # begin at a line, not inside a word
                start = text.find("\n", start) + 1
            part.append(text[start : start + EXCERPT])
        kept_out.append(part)
    return texts, kept_out[0], kept_out[1]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=2048,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    core.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, core.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=END, eos_token=END, model_max_length=2 * WINDOW
    )


def new_model(vocab_size: int, layers: int, width: int) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=width * 15 // 8,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 64,
            max_position_embeddings=2 * WINDOW,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def train(
    model: LlamaForCausalLM,
    streams: dict[str, torch.Tensor],
    shares: dict[str, float],
    *,
    steps: int,
    rate: float,
    seed: int,
) -> float:
    """Trains with AdamW, weight decay on matrices only, linear warm-up, linear decay; returns the seconds."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    warm_up = max(1, min(100, steps // 10))

    def pace(step: int) -> float:
        return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, pace)
    rng = random.Random(seed)
    names, weights = list(shares), list(shares.values())
    model.train()
    begun = time.monotonic()
    for step in range(steps):
        rows = []
        for name in rng.choices(names, weights, k=BATCH):
            at = rng.randrange(len(streams[name]) - WINDOW)
            rows.append(streams[name][at : at + WINDOW])
        batch = torch.stack(rows).to(model.device)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            seconds = time.monotonic() - begun
            print(f"  step {step}/{steps} loss {loss.item():.3f} after {seconds:.0f} s", flush=True)
    return time.monotonic() - begun


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Returns the mean negative log-likelihood per token, in nats."""
    model.eval()
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", truncation=True)["input_ids"].to(model.device)
        total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


def removal_costs(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, held_out: dict[str, list[str]]
) -> list[float]:
    """Returns mean held-out losses without layer 0, 1, … (8 excerpts a domain); a healthy base is graded."""
    layers = model.model.layers
    costs = []
    for left_out in range(len(layers)):
        model.model.layers = torch.nn.ModuleList(
            [layer for index, layer in enumerate(layers) if index != left_out]
        )
        losses = [held_out_loss(model, tokenizer, texts[:8]) for texts in held_out.values()]
        costs.append(round(sum(losses) / len(losses), 3))
    model.model.layers = layers
    return costs


def shares_of(own: str) -> dict[str, float]:
    """Returns how often each domain comes up while a finetune on one of them is trained."""
    rest = (1 - OWN_SHARE) / (len(DOMAINS) - 1)
    return {domain: OWN_SHARE if domain == own else rest for domain in DOMAINS}


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts))


def train_family(
    text_dir: Path,
    out_dir: Path,
    *,
    steps: int = 3200,
    tune_steps: int = 320,
    rate: float = 3e-3,
    tune_rate: float = 1e-3,
    layers: int = 12,
    width: int = 128,
    device: str = "cpu",
) -> None:
    """Trains a base on all domains and a finetune of it on each variant's, and writes them all."""
    rng = random.Random(SEED)
    parts = {}
    for domain in DOMAINS:
        with (text_dir / f"{domain}.jsonl").open() as lines:
            parts[domain] = split([json.loads(line)["text"] for line in lines], rng)
        write_jsonl(out_dir / "calibration" / f"{domain}.jsonl", parts[domain][1])
        write_jsonl(out_dir / "held-out" / f"{domain}.jsonl", parts[domain][2])
    tokenizer = train_tokenizer([text for domain in DOMAINS for text in parts[domain][0]])
    streams = {
        domain: torch.tensor(
            [i for ids in tokenizer(parts[domain][0], verbose=False)["input_ids"] for i in ids]
        )
        for domain in DOMAINS
    }
    held_out = {domain: parts[domain][2] for domain in DOMAINS}
    print({domain: len(stream) for domain, stream in streams.items()})

    record: dict[str, dict[str, object]] = {}

    def finish(name: str, model: LlamaForCausalLM, seconds: float, settings: dict[str, float]) -> None:
        model.to(torch.bfloat16).save_pretrained(out_dir / "family" / name)
        tokenizer.save_pretrained(out_dir / "family" / name)
        model.float()
        losses = {d: round(held_out_loss(model, tokenizer, t), 4) for d, t in held_out.items()}
        record[name] = {"seconds": round(seconds), **settings, "held_out_loss": losses}
        print(name, record[name], flush=True)
        (out_dir / "training.json").write_text(json.dumps(record, indent=1) + "\n")

    base = new_model(len(tokenizer), layers, width).to(device)
    seconds = train(base, streams, dict.fromkeys(DOMAINS, 1.0), steps=steps, rate=rate, seed=SEED)
    finish("base", base, seconds, {"steps": steps, "rate": rate})
    print("held-out loss without each layer:", removal_costs(base, tokenizer, held_out), flush=True)
    for position, name in enumerate(VARIANTS):
        variant = LlamaForCausalLM.from_pretrained(out_dir / "family" / "base", dtype=torch.float32)
        variant.to(device)
        seconds = train(
            variant, streams, shares_of(name), steps=tune_steps, rate=tune_rate, seed=SEED + 1 + position
        )
        finish(name, variant, seconds, {"steps": tune_steps, "rate": tune_rate, "own_share": OWN_SHARE})


def main(
    text_dir: Annotated[Path, typer.Argument(help="A directory with the texts.")],
    out_dir: Annotated[Path, typer.Argument(help="The directory to fill.")],
    steps: Annotated[int, typer.Option(help="Training steps of the base.")] = 3200,
    tune_steps: Annotated[int, typer.Option(help="Training steps of each finetune.")] = 320,
    rate: Annotated[float, typer.Option(help="Learning rate of the base.")] = 3e-3,
    tune_rate: Annotated[float, typer.Option(help="Learning rate of the finetunes.")] = 1e-3,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 1,
    layers: Annotated[int, typer.Option(help="Number of layers.")] = 12,
    width: Annotated[int, typer.Option(help="Width of the hidden state, a multiple of 64.")] = 128,
    device: Annotated[str, typer.Option(help="Where models are trained: cpu, cuda or mps.")] = "cpu",
    tiny: Tiny = False,
) -> None:
    if width % 64:
        raise typer.BadParameter(f"--width: expected a multiple of 64, found {width}")
    if tiny:
        steps, tune_steps, layers, width = 2, 1, 2, 64
    torch.set_num_threads(threads)
    train_family(
        text_dir,
        out_dir,
        steps=steps,
        tune_steps=tune_steps,
        rate=rate,
        tune_rate=tune_rate,
        layers=layers,
        width=width,
        device=device,
    )


if __name__ == "__main__":
    typer.run(main)
