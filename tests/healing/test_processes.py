"""Several processes train one model, as `accelerate launch` starts them; here they are forked."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import multiprocessing

from gptailor_merge.api.healings import heal
from gptailor_merge.errors import ConfigError
from gptailor_merge.healing import training
from gptailor_merge.healing.processes import launched_processes
from tests.healing.test_healed_recipe import MEMBERS, TEXTS, Killed
from tests.repair.test_repaired_recipe import demo

FORK = pytest.mark.skipif(
    sys.platform == "win32" or torch.cuda.is_available(), reason="processes with a GPU cannot be forked"
)
OPTIONS: dict[str, Any] = {
    "lora": 4,
    "tokens": 1152,
    "step_tokens": 256,
    "sequence_length": 64,
    "rate": 0.004,
    "members": MEMBERS,
    "device": "cpu",
}


def healed(out: Path, **changes: Any) -> dict[str, Any]:
    """Returns what healing came to, as values that a pipe takes."""
    said: list[str] = []
    slices = (("base", 0, 4, "select"), ("base", 4, 6, "remove"), ("base", 6, 12, "select"))
    recipe = demo(*slices, dtype="float32", out_dtype="bfloat16")
    texts = [f"{name}={file}" for name, file in TEXTS.items()]
    result = heal(recipe, texts, out, on_step=said.append, **{**OPTIONS, **changes})
    healing = result.healing
    assert healing.facts is not None
    return {
        "said": said,
        "recipe": result.recipe.to_yaml(),
        "losses": (healing.before, healing.after),
        "steps": healing.steps,
        "tokens": healing.facts.tokens,
        "device": healing.facts.device,
    }


def together(work: Callable[[], Any], count: int = 2) -> list[Any]:
    """Returns what processes come to that were launched together, each its result or its error."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
    context = multiprocessing.get_context("fork")
    ends = []
    for index in range(count):
        ours, theirs = context.Pipe(duplex=False)
        ranks = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        variables = {**address, **{name: str(value) for name, value in ranks.items()}}

        def child(pipe: Any = theirs, variables: dict[str, str] = variables) -> None:
            torch.set_num_threads(1)
            os.environ.update(variables, OMP_NUM_THREADS="1")
            AcceleratorState._reset_state(reset_partial_state=True)
            try:
                pipe.send(work())
            except BaseException as error:  # sent instead of a result
                pipe.send(repr(error))

        process = context.Process(target=child)
        process.start()
        ends.append((process, ours))
    results = [pipe.recv() for _, pipe in ends]
    for process, _ in ends:
        process.join()
    return results


@FORK
def test_two_processes_that_were_killed_end_as_one_does_and_only_the_first_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LOOKS", 2)
    alone = healed(tmp_path / "alone")
    out = tmp_path / "together"

    def killed() -> None:
        training._Observer = type("Observer", (Killed, training._Observer), {"last": 3})
        healed(out)

    assert together(killed) == ["KeyboardInterrupt()"] * 2
    assert not out.exists()
    first, second = together(lambda: healed(out))
    assert second["said"] == []
    assert [step for step in first["said"] if step.startswith("healing, step 2 ")] == []
    assert first["said"][-1].startswith("healing, step 4 of 4: loss ")
    assert {**first, "said": []} == second
    assert (first["steps"], first["tokens"]) == (alone["steps"], alone["tokens"])
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert (alone["device"], first["device"]) == ("cpu", "2 × cpu")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["alone", "together"]


@FORK
def test_all_end_when_the_time_of_the_first_is_over(tmp_path: Path) -> None:
    def timed() -> Any:
        if os.environ["RANK"] == "1":
            training.time = SimpleNamespace(monotonic=lambda: 0.0)  # the clock of this process stands still
        return healed(tmp_path / "out", minutes=1e-6, cross_entropy=1.0)["steps"]

    assert together(timed) == [1, 1]


@pytest.mark.parametrize(
    ("device", "variable", "message"),
    [
        ("cuda:0", "", "each process takes a GPU of its own; expected --device cuda, found cuda:0"),
        ("cuda", "ACCELERATE_USE_FSDP", "expected accelerate launch without FSDP, found ACCELERATE_USE_FSDP"),
    ],
)
def test_what_several_processes_cannot_do_is_a_sentence(
    device: str, variable: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    if variable:
        monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match=message):
        launched_processes(torch.device(device))
