"""The best merge at full size: plain merges, the search and tuned merge weights side by side.

    python benchmarks/full_size.py [--family DIR --texts DIR] [--steps N] [--tokens N] [--device D]
                                   [--json FILE] [--tiny]

Nothing is removed. The arms are the members; the merges of the whole family that mergekit's users make, with
their usual weights; our search, with as many tokens as the dearest tuning; and the linear merge, tuned: merge
weights that a layer, a part of it or a tensor has, with and without the gains of norms. Tokens that are
differentiated count three times. --family takes a directory with `base` and the variants, and --texts one
with `calibration/NAME.jsonl` and `held-out/NAME.jsonl`; a variant teaches the texts of its name, the base
all others.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from common import DEMO, JsonFile, Tiny, held_out_losses
from rich import box
from rich.console import Console
from rich.table import Table

from gptailor_merge import Plan, Recipe, SearchConfig, Session, open_session, plan, quiet_libraries, tune
from gptailor_merge.api.engine import pick_device

MERGES: dict[str, dict[str, Any]] = {
    "linear": {"weight": 1.0},
    "task_arithmetic": {"weight": 0.4},
    "ties": {"weight": 1.0, "density": 0.2},
    "dare_linear": {"weight": 0.4, "density": 0.5},
    "dare_ties": {"weight": 0.4, "density": 0.5},
}
"""Methods that merge a whole family, with the settings of each member."""


TUNED = [(sharing, norms) for norms in (False, True) for sharing in ("layer", "part", "tensor")]
"""What shares a merge weight, and whether the gains of norms are fitted."""


SEQUENCE_LENGTH = 256


@dataclass(frozen=True)
class Arm:
    """A model at full size.

    Attributes:
        losses: held-out loss of each text, and their mean: nats per token.
        tokens: those that it took to choose the model.
    """

    losses: Mapping[str, float]
    tokens: int = 0
    seconds: float = 0.0


def config_of(family: Path, texts: Path, tokens: int, *, tiny: bool) -> SearchConfig:
    """Returns the config of a search that removes nothing."""
    members = {directory.name: str(directory) for directory in sorted(family.iterdir()) if directory.is_dir()}
    base = members.pop("base")
    most = 2 if tiny else None
    data = {
        part: {file.stem: str(file) for file in sorted((texts / part).glob("*.jsonl"))[:most]}
        for part in ("calibration", "held-out")
    }
    scored, held_out = (512, 512) if tiny else (max(512, tokens // 8), 16384)
    length = 32 if tiny else SEQUENCE_LENGTH
    document = {
        "family": {"base": base, "variants": members},
        "target": {"remove": 0},
        "objectives": [
            {
                "kind": "kl",
                "data": data["calibration"],
                "teacher": {name: name for name in data["calibration"] if name in members},
                "tokens": scored,
                "sequence_length": length,
            }
        ],
        "held_out": [
            {
                "kind": "perplexity",
                "data": data["held-out"],
                "tokens": held_out,
                "sequence_length": length,
            }
        ],
        "operations": {"outer": "merge"},
    }
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "search.yml"
        file.write_text(yaml.safe_dump(document))
        return SearchConfig.load(file)


def merged(session: Session, method: str) -> Recipe:
    """Returns the merge of the whole family by a method."""
    base, *variants = session.space.models
    takes_base = method != "linear"
    models = variants if takes_base else [base, *variants]
    settings = MERGES[method]
    ends: dict[str, Any] = {"method": method, "members": models, "parameters": settings}
    depth = session.space.depth
    sources = [{"model": model, "layer_range": [0, depth], "parameters": settings} for model in models]
    return Recipe.from_mapping(
        {
            "merge_method": "tailor",
            "base_model": base,
            "dtype": "float32",
            "out_dtype": session.space.out_dtype,
            "parameters": {"embeddings": ends, "head": ends},
            "slices": [{"sources": sources, "parameters": {"op": "merge", "method": method}}],
        }
    )


class Bench:
    """Measures the arms of a family.

    Attributes:
        arms: name -> arm, in the order of the table.
    """

    def __init__(self, config: SearchConfig, device: str) -> None:
        self._config, self._device = config, device
        self.session = open_session(config, device=device)
        self.arms: dict[str, Arm] = {}

    def add(self, name: str, model: Plan, tokens: int = 0, seconds: float = 0.0) -> None:
        """Measures an arm on the held-out set."""
        self.arms[name] = Arm(held_out_losses(self.session, model), tokens, seconds)
        print(f"{name}: {self.arms[name].losses['mean']:.3f}", flush=True)

    def tune(self, start: Recipe, sharing: str, out: Path, *, norms: bool, steps: int, tokens: int) -> None:
        """Tunes a recipe and measures what comes of it."""
        (objective,) = self._config.objectives
        begun = time.perf_counter()
        result = tune(
            start,
            [f"{name}={file}" for name, file in objective.sources().items()],
            out,
            members=self._config.family.variants,
            steps=steps,
            weights=sharing,
            norms=norms,
            tokens=tokens,
            sequence_length=getattr(objective, "sequence_length", SEQUENCE_LENGTH),
            device=self._device,
        )
        seconds = time.perf_counter() - begun
        name = f"tuned, a weight per {sharing}{' and the gains of norms' if norms else ''}"
        self.add(name, plan(result.recipe), result.tuning.fit.tokens, seconds)

    def search(self, tokens: int, population: int) -> None:
        """Searches until as many tokens are scored."""
        begun = time.perf_counter()
        budget = max(population, 2 * tokens // self.session.tokens)
        trace = self.session.search(tokens=tokens, population=population, budget=budget)
        seconds = time.perf_counter() - begun
        finished = [candidate for candidate in trace.candidates if candidate.digest in trace.finished]
        best = min(finished, key=lambda candidate: candidate.loss or 0.0)
        self.add("our search, not tuned", best.plan, sum(trace.tokens[-1:]), seconds)

    def table(self) -> Table:
        """Draws all arms."""
        names = list(next(iter(self.arms.values())).losses)
        table = Table("", *names, "tokens", "seconds", box=box.SIMPLE)
        for column in table.columns[1:]:
            column.justify = "right"
        for name, arm in self.arms.items():
            spent = [f"{arm.tokens:,}", f"{arm.seconds:.0f}"] if arm.tokens else ["", ""]
            table.add_row(name, *(f"{arm.losses[column]:.3f}" for column in names), *spent)
        return table


def main(
    family: Annotated[Path, typer.Option(help="A directory with the base and its variants.")] = DEMO
    / "family",
    texts: Annotated[Path, typer.Option(help="A directory with calibration and held-out texts.")] = DEMO,
    steps: Annotated[int, typer.Option(help="Most steps of a tuning.")] = 30,
    tokens: Annotated[int, typer.Option(help="Tokens that a tuning takes of the texts.")] = 32768,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json_file: JsonFile = None,
    tiny: Tiny = False,
) -> None:
    quiet_libraries()
    if tiny:
        steps, tokens = 1, 1024
    bench = Bench(config_of(family, texts, tokens, tiny=tiny), str(pick_device(device)))
    for place, member in enumerate(bench.session.workplace.family.members):
        bench.add(member.name, bench.session.select(place, set()))
    for method in ("linear", "dare_ties") if tiny else MERGES:
        bench.add(method, plan(merged(bench.session, method)))
    start = merged(bench.session, "linear")
    with tempfile.TemporaryDirectory() as directory:
        for number, (sharing, norms) in enumerate(TUNED[:1] if tiny else TUNED):
            out = Path(directory) / str(number)
            bench.tune(start, sharing, out, norms=norms, steps=steps, tokens=tokens)
    bench.search(max(arm.tokens for arm in bench.arms.values()), 4 if tiny else 16)
    Console(width=140).print(bench.table())
    if json_file is not None:
        figures = {name: asdict(arm) for name, arm in bench.arms.items()}
        json_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
