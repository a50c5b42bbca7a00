"""Healing: what a pruned model comes to when the family trains it, by tokens, method and teacher.

    python benchmarks/heal.py --json FILE [--layers 9] [--family DIR --texts DIR] [--tokens N …] [--tiny]

Our search, and the best merge pruned by ShortGPT and SLEB, are repaired and tuned alike, as quality.py does,
and then healed: at each number of tokens through an adapter and with all weights; at the fewest also with the
base as the only teacher, and on the text alone. Held-out loss is in nats per token, mean over the
domains. --texts has calibration/, held-out/ and train/NAME.jsonl, or .jsonl.gz. Without train/, as in the
demo, calibration/ is trained on: the search has scored its first tokens; held out are other documents.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from common import DEMO, JsonFile, Tiny, tiny_family
from quality import configuration, depth_of, members
from quality_bench import Bench, Job
from quality_methods import OURS
from rich import box
from rich.console import Console
from rich.table import Table

from gptailor_merge import Recipe, heal, quiet_libraries, score
from gptailor_merge.api.engine import pick_device

RIVALS = ("one merge + ShortGPT", "one merge + SLEB")
TOKENS = (40_960, 163_840, 327_680)


@dataclass(frozen=True)
class Treatment:
    """A way to heal.

    Attributes:
        start: the name of the method whose recipe is healed.
        tokens: trained on.
        options: of gptailor_merge.heal.
    """

    name: str
    start: str
    tokens: int
    options: Mapping[str, Any] = field(default_factory=dict)


def treatments(
    tokens: Sequence[int], names: Sequence[str], rivals: Sequence[str] = RIVALS
) -> list[Treatment]:
    """Returns all treatments, those of few tokens first; teachers and starts are compared at the fewest.

    Args:
        names: of the training texts.
    """
    first, *later = sorted(tokens)
    by_base = {"teachers": dict.fromkeys(names, "base")}
    listed = [
        Treatment(f"adapter, {first:,}", OURS, first),
        Treatment(f"all weights, {first:,}", OURS, first, {"lora": None}),
        Treatment(f"adapter, the base teaches all, {first:,}", OURS, first, by_base),
        Treatment(f"adapter, the text alone, {first:,}", OURS, first, {"cross_entropy": 1.0}),
        *(Treatment(f"adapter, from {rival}, {first:,}", rival, first) for rival in rivals),
    ]
    for count in later:
        listed.append(Treatment(f"adapter, {count:,}", OURS, count))
        listed.append(Treatment(f"all weights, {count:,}", OURS, count, {"lora": None}))
    return listed


@dataclass(frozen=True)
class HealBench:
    """Heals and measures.

    Attributes:
        train: name -> file that is trained on.
        held_out: name -> file that is measured on.
        variants: name -> teacher besides the base.
        tokens: of what is measured on.
        length: of a sequence.
    """

    train: Mapping[str, str]
    held_out: Mapping[str, str]
    variants: Mapping[str, str]
    tokens: int
    length: int
    device: str

    @classmethod
    def of(cls, config: Mapping[str, Any], texts: Path, device: str) -> HealBench:
        """Takes what quality.configuration has made."""
        (objective, *_), (measured, *_) = config["objectives"], config["held_out"]
        names = list(objective["data"])
        directory = texts / "train" if (texts / "train").is_dir() else texts / "calibration"
        files = {name: next(directory.glob(f"{name}.jsonl*")) for name in names}
        return cls(
            {name: str(file) for name, file in files.items()},
            {name: measured["data"][name] for name in names},
            config["family"]["variants"],
            measured["tokens"],
            measured["sequence_length"],
            device,
        )

    def loss(self, model: Path | Recipe) -> dict[str, float]:
        """Returns held-out losses of each domain, and their mean."""
        scores = score(
            model,
            _pairs(self.held_out),
            tokens=self.tokens,
            sequence_length=self.length,
            device=self.device,
        )
        losses = {name: of_text.nll for name, of_text in scores.files.items()}
        return {**losses, "mean": sum(losses.values()) / len(losses)}

    def healed(self, recipe: Recipe, treatment: Treatment, out: Path) -> dict[str, Any]:
        """Heals a recipe and measures what comes of it."""
        curve: list[str] = []
        result = heal(
            recipe,
            _pairs(self.train),
            out,
            tokens=treatment.tokens,
            sequence_length=self.length,
            members=self.variants,
            device=self.device,
            on_step=curve.append,
            **treatment.options,
        )
        model = out / "model"
        healing = result.healing
        return {
            "held_out": self.loss(model if model.is_dir() else result.recipe),
            "before": healing.before,
            "after": healing.after,
            "steps": healing.steps,
            "parameters": healing.parameters,
            "seconds": None if healing.facts is None else healing.facts.seconds,
            "curve": [sentence for sentence in curve if "loss" in sentence],
        }


def _pairs(files: Mapping[str, str]) -> list[str]:
    return [f"{name}={file}" for name, file in files.items()]


def table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Draws all treatments, beside the models that they start from."""
    drawn = Table("", "held out", "steps", "numbers", "seconds", box=box.SIMPLE)
    for column in drawn.columns[1:]:
        column.justify = "right"
    for name, figures in results.items():
        spent = [figures.get(key) for key in ("steps", "parameters", "seconds")]
        cells = ["" if number is None else f"{number:,.0f}" for number in spent]
        drawn.add_row(name, f"{figures['held_out']['mean']:.3f}", *cells)
    return drawn


def starts(
    config: Mapping[str, Any], layers: int, directory: Path, *, tiny: bool
) -> Iterator[tuple[str, Recipe]]:
    """Yields name -> recipe of our search and its rivals, repaired and tuned alike."""
    rivals = RIVALS[:1] if tiny else RIVALS
    bench = Bench(Job(yaml.safe_dump(dict(config)), layers, 0, rivals, tiny=tiny), directory)
    for arm in (OURS, *rivals):
        for name, result in bench.methods.results(arm):
            bench.measured(name, result)
            if name in (OURS, *rivals):
                yield name, bench.refined[name]


def main(
    json_file: JsonFile = None,
    layers: Annotated[int | None, typer.Option(help="Layers that stay; default three quarters.")] = None,
    family: Annotated[Path, typer.Option(help="A directory laid out as the demo's, or of members.")] = DEMO,
    texts: Annotated[Path | None, typer.Option(help="Has calibration/, held-out/ and train/.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Tokens to train on; repeatable.")] = None,
    tiny: Tiny = False,
) -> None:
    quiet_libraries()
    counts: Sequence[int] = tokens or TOKENS
    with tempfile.TemporaryDirectory() as scratch:
        if tiny:
            family, counts = Path(scratch), (256,)
            tiny_family(family)
        texts = (texts or family).resolve()
        config = configuration(family.resolve(), texts=texts, tiny=tiny)
        config["held_out"] = config["held_out"][:1]
        depth = depth_of(config)
        device = "cpu" if tiny else str(pick_device("auto"))
        bench = HealBench.of(config, texts, device)
        results: dict[str, Any] = {
            f"{name}, whole": figures for name, figures in members(config, device).items()
        }
        directory = Path(scratch) / "starts"
        directory.mkdir()
        recipes = dict(starts(config, layers or round(0.75 * depth), directory, tiny=tiny))
        for name, recipe in recipes.items():
            results[name] = {"held_out": bench.loss(recipe)}
        for number, treatment in enumerate(treatments(counts, list(bench.train), list(recipes)[1:])):
            out = Path(scratch) / f"healed-{number}"
            results[treatment.name] = bench.healed(recipes[treatment.start], treatment, out)
            print(f"{treatment.name}: {results[treatment.name]['held_out']['mean']:.3f}", flush=True)
            if json_file is not None:
                json_file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        Console(width=120).print(table(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
