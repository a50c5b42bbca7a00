"""Measures models on texts, and on lm-eval's tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gptailor_merge.api.arguments import AnyPath, file_of, ignore, path_of
from gptailor_merge.models.devices import pick_device
from gptailor_merge.recipe.recipe import Recipe
from gptailor_merge.scoring.task_scores import LmEvalSettings, TaskScores, score_on_tasks
from gptailor_merge.scoring.text_scores import TextScores, score_on_texts


def score(
    model: AnyPath | Recipe,
    data: Sequence[str],
    *,
    column: str = "text",
    tokens: int = 32768,
    sequence_length: int = 512,
    reference: str | None = None,
    top_k: int = 128,
    device: str = "auto",
) -> TextScores:
    """Scores a recipe or a written model on texts: nats per token, perplexity, KL to a reference.

        scores = score("runs/first/best.yml", ["stories.jsonl", "code=sources.txt"])
        print(scores.files["code"].perplexity)

    Args:
        model: a recipe, its file, or a model directory.
        data: files or directories of texts, each PATH or NAME=PATH.
        column: field or column that holds the text or messages; `text` also stands for those that chat
            data usually have.
        tokens: total number of tokens, shared evenly by the files.
        sequence_length: tokens in a sequence.
        reference: directory or Hub id of a model; adds KL(reference || model).
        top_k: number of the reference's likeliest tokens that are kept for KL.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        InputError: the model, the texts or the reference cannot be used.
    """
    with file_of(model) as path:
        return score_on_texts(
            path,
            data,
            column=column,
            tokens=tokens,
            sequence_length=sequence_length,
            reference=reference,
            top_k=top_k,
            device=pick_device(device),
        )


def evaluate(
    model: AnyPath | Recipe,
    tasks: Sequence[str],
    *,
    include_path: AnyPath | None = None,
    limit: int | None = None,
    few_shot: int | None = None,
    chat_template: bool = False,
    batch_size: int = 16,
    device: str = "auto",
    on_step: Callable[[str], None] = ignore,
) -> TaskScores:
    """Runs lm-eval's tasks on a model; for a recipe also on its members, with what it retains of them.

        evaluation = evaluate("runs/first/best.yml", ["arc_easy"], limit=100)
        print(evaluation.retained("best.yml", "arc_easy", "acc"))

    Args:
        model: a recipe, its file, or a model directory.
        tasks: names that lm-eval knows, or that a YAML file in `include_path` gives.
        limit: number of items of each task, from its first.
        few_shot: number of examples before each item; default the task's own.
        chat_template: puts the tokenizer's chat template around items.
        batch_size: number of requests that run together.

    Raises:
        ConfigError: an unknown task.
        ScoringError: lm-eval could not run a task.
    """
    directory = None if include_path is None else path_of(include_path)
    settings = LmEvalSettings(tuple(tasks), directory, limit, few_shot, chat_template, batch_size)
    with file_of(model) as path:
        return score_on_tasks(path, settings, pick_device(device), progress=on_step)
