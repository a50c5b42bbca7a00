"""Draws the tables and pictures of quality.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import ttest_rel

OURS, PLAIN, PAPER = "default search", "not repaired", "paper"
REFERENCE = "base"
Results = Mapping[str, Any]


def report(results: Results, sizes: Sequence[int], seeds: int, plots: Path | None) -> None:
    """Prints the results of these sizes, and draws them where a directory is given."""
    console = Console(width=200)
    whole = results["members"]
    lines = Table("", *(name for name in whole["base"]["held_out"]), "accuracy", box=box.MARKDOWN)
    for name, member in whole.items():
        values = member["held_out"].values()
        lines.add_row(name, *(f"{value:.3f}" for value in values), f"{accuracy(member):.3f}")
    console.print("\nThe whole models: held-out loss, nats per token; mean accuracy of the tasks")
    console.print(lines)
    for layers in sizes:
        jobs = [results[key(layers, seed)] for seed in range(seeds) if key(layers, seed) in results]
        if jobs:
            console.print(f"\n{layers} layers, {len(jobs)} seeds")
            console.print(table_of(jobs, whole))
            console.print(speed_of(jobs))
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        draw(results, sizes, seeds, plots)


def key(layers: int, seed: int) -> str:
    return f"{layers} layers, seed {seed}"


def accuracy(method: Mapping[str, Any]) -> float:
    return float(np.mean([task["acc"] for task in method["tasks"].values()]))


def held_out(job: Mapping[str, Any], name: str) -> float:
    return float(job[name]["held_out"]["mean"])


def repaired(job: Mapping[str, Any], name: str) -> float:
    return float(job[name].get("repaired", {}).get("mean", math.nan))


def table_of(jobs: Sequence[Mapping[str, Any]], whole: Results) -> Table:
    """Draws the methods from best to worst; p is from the paired t test against ours, seed by seed."""
    domains = [name for name in whole["base"]["held_out"] if name != "mean"]
    columns = ["", "held out", "− ours", "p", "ours better in", *domains, "kept, base", "kept, best"]
    columns += ["accuracy", "kept", "tokens", "seconds", "repaired", "− ours repaired", "p"]
    table = Table(*columns, box=box.MARKDOWN)
    names = sorted(jobs[0], key=lambda name: float(np.mean([held_out(job, name) for job in jobs])))
    best = {d: min(member["held_out"][d] for member in whole.values()) for d in domains}
    base = whole["base"]["held_out"]

    def mean(of: Callable[[Mapping[str, Any]], float], name: str) -> float:
        return float(np.mean([of(job[name]) for job in jobs]))

    for name in names:
        losses = np.array([held_out(job, name) for job in jobs])
        by_domain = {d: float(np.mean([job[name]["held_out"][d] for job in jobs])) for d in domains}
        cells = [name, f"{losses.mean():.4f} ± {_spread(losses):.4f}"]
        cells += against(losses, np.array([held_out(job, OURS) for job in jobs]), name)
        cells += [f"{value:.3f}" for value in by_domain.values()]
        cells += [_kept(by_domain, base), _kept(by_domain, best)]
        right = mean(accuracy, name)
        cells += [f"{right:.3f}", f"{right / accuracy(whole['base']):.1%}"]
        cells += [f"{mean(lambda method: method['tokens'], name):,.0f}"]
        cells += [f"{mean(lambda method: method['seconds'], name):.0f}"]
        fixed = np.array([repaired(job, name) for job in jobs])
        if np.isnan(fixed).any():
            cells += ["", "", ""]
        else:
            ours = np.array([repaired(job, OURS) for job in jobs])
            cells += [f"{fixed.mean():.4f}", *against(fixed, ours, name)[:2]]
        table.add_row(*cells)
    return table


def against(losses: Any, ours: Any, name: str) -> list[str]:
    """Returns the mean difference from ours, p, and the number of seeds in which ours is lower."""
    if name == OURS:
        return ["", "", ""]
    apart = losses - ours
    p = float(ttest_rel(losses, ours).pvalue) if len(losses) > 1 and apart.std() > 0 else math.nan
    return [f"{apart.mean():+.4f}", f"{p:.2g}", f"{int((apart > 0).sum())} of {len(apart)}"]


def _spread(values: Any) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _kept(losses: Mapping[str, float], reference: Mapping[str, float]) -> str:
    """Returns the reference's perplexity over the model's, as the geometric mean over domains."""
    return f"{math.exp(float(np.mean([reference[d] - losses[d] for d in losses]))):.1%}"


def speed_of(jobs: Sequence[Mapping[str, Any]]) -> str:
    """Tells when our search was as good on the held-out set as others are in the end."""
    baselines = [n for n in jobs[0] if n not in (OURS, PLAIN, PAPER) and "remove" not in n]
    lines = []
    goals = {"the best baseline": [min(held_out(job, name) for name in baselines) for job in jobs]}
    if PAPER in jobs[0]:
        goals["the paper's search"] = [held_out(job, PAPER) for job in jobs]
    for label, by_job in goals.items():
        reached = []
        for job, goal in zip(jobs, by_job, strict=True):
            first = next((step for step in job[OURS]["steps"] if step["mean"] <= goal), None)
            if first is not None:
                share = first["tokens"] / job[OURS]["tokens"]
                reached.append((first["tokens"], first["seconds"], share))
        if not reached:
            lines.append(f"as good as {label}: in no seed")
            continue
        tokens, seconds, share = np.mean(reached, axis=0)
        lines.append(
            f"as good as {label}: in {len(reached)} of {len(jobs)} seeds, after {tokens:,.0f} tokens "
            f"({share:.1%} of all) and {seconds:.1f} s in the mean"
        )
    for label, loss in {"": held_out, " if that is repaired, too": repaired}.items():
        worse = sum(loss(job, OURS) > min(loss(job, name) for name in baselines) for job in jobs)
        lines.append(f"worse than the best baseline of the seed{label}: in {worse} of {len(jobs)} seeds")
    return "\n".join(lines)


def draw(results: Results, sizes: Sequence[int], seeds: int, directory: Path) -> None:
    """Draws loss against layers, and the progress of the searches at each size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = ["uidl", "shortgpt", "laco", "sleb", "evopress", "random", PAPER, PLAIN, OURS]
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for name in shown:
        points = []
        for layers in sizes:
            jobs = [results[key(layers, s)] for s in range(seeds) if key(layers, s) in results]
            values = [held_out(job, name) for job in jobs if name in job]
            if values:
                points.append((layers, float(np.mean(values)), min(values), max(values)))
        if points:
            at, mean, low, high = zip(*points, strict=True)
            style = {"linewidth": 2.5, "color": "black"} if name == OURS else {"linewidth": 1.2}
            (line,) = axes.plot(at, mean, marker="o", markersize=3.5, label=name, **style)
            axes.fill_between(at, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.axhline(
        results["members"]["base"]["held_out"]["mean"], color="grey", linestyle=":", label="base, whole"
    )
    axes.set(xlabel="layers that stay", ylabel="held-out loss, nats per token")
    axes.set_xticks(sorted(sizes))
    axes.invert_xaxis()
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(directory / "quality-sizes.png", dpi=130)
    plt.close(figure)
    for layers in sizes:
        figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
        for name, color in {"random": "C2", "evopress": "C1", PAPER: "C3", OURS: "black"}.items():
            for seed in range(seeds):
                job = results.get(key(layers, seed), {})
                if name in job:
                    steps = job[name]["steps"]
                    tokens = [*(step["tokens"] for step in steps), job[name]["tokens"]]
                    losses = [step["mean"] for step in steps]
                    axes.step(
                        tokens,
                        [*losses, losses[-1]],
                        where="post",
                        color=color,
                        linewidth=1.2,
                        alpha=0.8,
                        label=name if seed == 0 else None,
                    )
        axes.set(
            xlabel="scored tokens", ylabel="held-out loss of the best so far, nats per token", xscale="log"
        )
        axes.set_title(f"{layers} layers", loc="left", fontsize=10)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(directory / f"quality-progress-{layers}.png", dpi=130)
        plt.close(figure)
