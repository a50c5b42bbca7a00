"""Draws the tables and pictures of quality.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quality_methods import EQUAL_SECONDS, NOT_TUNED, OURS, PAPER, PLAIN, RIVALS
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import ttest_rel

Results = Mapping[str, Any]


def report(results: Results, sizes: Sequence[int], seeds: int, plots: Path | None) -> None:
    """Prints the results of these sizes, and draws them where a directory is given."""
    console = Console(width=260)
    whole = results["members"]
    inside, outside = domains_of(whole)
    lines = Table("", *whole["base"]["held_out"], "accuracy", box=box.MARKDOWN)
    for name, member in whole.items():
        values = member["held_out"].values()
        lines.add_row(name, *(f"{value:.3f}" for value in values), _share(accuracy(member)))
    console.print("\nThe whole models: held-out loss, nats per token; mean accuracy of the tasks")
    if outside:
        console.print(f"{', '.join(outside)}: not calibrated on; the mean is over {', '.join(inside)}")
    console.print(lines)
    for layers in sizes:
        known = [results[key(layers, seed)] for seed in range(seeds) if key(layers, seed) in results]
        # A job that was interrupted lacks some methods.
        jobs = [{name: job[name] for name in job if all(name in other for other in known)} for job in known]
        if jobs and OURS in jobs[0]:
            console.print(f"\n{layers} layers, {len(jobs)} seeds")
            console.print("As the methods are")
            console.print(table_of(jobs, whole))
            for limit in ("tokens", "seconds"):
                console.print(f"All treated alike, those that do not end by themselves at equal {limit}")
                console.print(treated_table(jobs, limit, outside))
            console.print(speed_of(jobs))
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        draw(results, sizes, seeds, plots)


def key(layers: int, seed: int) -> str:
    return f"{layers} layers, seed {seed}"


def domains_of(whole: Results) -> tuple[list[str], list[str]]:
    """Returns the domains that are calibrated on, and those that stand behind the mean and are not in it."""
    names = [*whole["base"]["held_out"]]
    at = names.index("mean")
    return names[:at], names[at + 1 :]


def accuracy(method: Mapping[str, Any]) -> float:
    return float(np.mean([task["acc"] for task in method["tasks"].values()])) if method["tasks"] else math.nan


def held_out(job: Mapping[str, Any], name: str, treatment: str = "held_out") -> float:
    """Returns the mean loss of a method: "held_out" as it is, "repaired" or "tuned"; nan if it has none."""
    return float(job[name].get(treatment, {}).get("mean", math.nan))


def table_of(jobs: Sequence[Mapping[str, Any]], whole: Results) -> Table:
    """Draws the methods from best to worst; p is from the paired t test against ours, seed by seed."""
    domains, outside = domains_of(whole)
    columns = [
        "",
        "held out",
        "− ours",
        "p",
        "ours better in",
        *domains,
        *outside,
        "kept, base",
        "kept, best",
    ]
    columns += ["accuracy", "kept", "tokens", "seconds"]
    table = Table(*columns, box=box.MARKDOWN)
    names = sorted(
        (name for name in jobs[0] if not name.endswith(EQUAL_SECONDS)),
        key=lambda name: float(np.mean([held_out(job, name) for job in jobs])),
    )
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
        cells += [f"{np.mean([job[name]['held_out'][d] for job in jobs]):.3f}" for d in outside]
        cells += [_kept(by_domain, base), _kept(by_domain, best)]
        right = mean(accuracy, name)
        cells += [_share(right), _share(right / accuracy(whole["base"]))]
        cells += [f"{mean(lambda method: method['tokens'], name):,.0f}"]
        cells += [f"{mean(lambda method: method['seconds'], name):.0f}"]
        table.add_row(*cells)
    return table


def treated_table(jobs: Sequence[Mapping[str, Any]], limit: str, outside: Sequence[str]) -> Table:
    """Draws the methods repaired, and repaired and tuned, from best to worst, each with its totals.

    Args:
        limit: where a method does not end by itself, our search's "tokens" or "seconds" stopped it.
        outside: domains that are not calibrated on; their losses after all treatment.
    """
    heads = [
        f"{column}{of}" for of in ("repaired", "tuned") for column in ("", "− ours, ", "p, ", "better in, ")
    ]
    table = Table("", *heads, *outside, "tokens in all", "seconds in all", box=box.MARKDOWN)
    names = {name.removesuffix(EQUAL_SECONDS): name for name in jobs[0]} if limit == "seconds" else {}
    names = names or {name: name for name in jobs[0] if not name.endswith(EQUAL_SECONDS)}

    def final(job: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        treated: Mapping[str, Any] = job[name].get("tuned") or job[name].get("repaired") or job[name]
        return treated

    def order(name: str) -> float:
        return float(np.mean([final(job, name).get("mean", math.inf) for job in jobs]))

    for shown, name in sorted(names.items(), key=lambda pair: order(pair[1])):
        cells = [shown]
        for treatment in ("repaired", "tuned"):
            ours = NOT_TUNED if treatment == "repaired" and NOT_TUNED in jobs[0] else OURS
            losses = np.array([held_out(job, name, treatment) for job in jobs])
            reference = np.array([held_out(job, ours, treatment) for job in jobs])
            mean = "" if np.isnan(losses).any() else f"{losses.mean():.4f} ± {_spread(losses):.4f}"
            compared = against(losses, reference, OURS if name == ours or not mean else name)
            cells += [mean, *compared]
        totals = [final(job, name) for job in jobs]
        cells += [f"{np.mean([total[domain] for total in totals]):.3f}" for domain in outside]
        cells += [f"{np.mean([total[key] for total in totals]):,.0f}" for key in ("tokens", "seconds")]
        table.add_row(*cells)
    return table


def against(losses: Any, ours: Any, name: str) -> list[str]:
    """Returns the mean difference from ours, p, and the number of seeds in which ours is lower."""
    if name == OURS:
        return ["", "", ""]
    apart = losses - ours
    p = float(ttest_rel(losses, ours).pvalue) if len(losses) > 1 and apart.std() > 0 else math.nan
    return [f"{apart.mean():+.4f}", f"{p:.2g}", f"{int((apart > 0).sum())} of {len(apart)}"]


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _spread(values: Any) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _kept(losses: Mapping[str, float], reference: Mapping[str, float]) -> str:
    """Returns the reference's perplexity over the model's, as the geometric mean over domains."""
    return f"{math.exp(float(np.mean([reference[d] - losses[d] for d in losses]))):.1%}"


def speed_of(jobs: Sequence[Mapping[str, Any]]) -> str:
    """Tells when our search was as good on the held-out set as others are in the end."""
    baselines = [n for n in jobs[0] if n not in (OURS, NOT_TUNED, PLAIN, PAPER) and "remove" not in n]
    lines: list[str] = []
    if not baselines:
        return ""
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
    told = {"held_out": "", "repaired": " if both are repaired", "tuned": " if both are repaired and tuned"}
    for treatment, label in told.items():
        ours = NOT_TUNED if treatment == "repaired" and NOT_TUNED in jobs[0] else OURS
        rivals = [name for name in baselines if treatment in jobs[0][name]]
        if not rivals or treatment not in jobs[0][ours]:
            continue
        worse = sum(
            held_out(job, ours, treatment) > min(held_out(job, name, treatment) for name in rivals)
            for job in jobs
        )
        lines.append(f"worse than the best baseline of the seed{label}: in {worse} of {len(jobs)} seeds")
    return "\n".join(lines)


def draw(results: Results, sizes: Sequence[int], seeds: int, directory: Path) -> None:
    """Draws loss against layers, and the progress of the searches at each size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = ["uidl", "shortgpt", "laco", "sleb", "evopress", "random", *RIVALS, PAPER, PLAIN, OURS]
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
