"""The common merge methods pass the contract that ships."""

from __future__ import annotations

from gptailor_merge.testing.methods import MergeMethodContract


class TestLinear(MergeMethodContract):
    method = "linear"
    source_parameters = {"weight": 0.4}  # noqa: RUF012
    base_parameters = {"weight": 0.2}  # noqa: RUF012


class TestTaskArithmetic(MergeMethodContract):
    method = "task_arithmetic"
    source_parameters = {"weight": 0.6}  # noqa: RUF012


class TestSlerp(MergeMethodContract):
    method = "slerp"
    members = ("base", "math")
    parameters = {"t": [0.2, 0.7]}  # noqa: RUF012


class TestTies(MergeMethodContract):
    method = "ties"
    parameters = {"density": [{"filter": "mlp", "value": 0.6}, {"value": 0.4}]}  # noqa: RUF012
    source_parameters = {"weight": 0.4}  # noqa: RUF012


class TestDareTies(MergeMethodContract):
    method = "dare_ties"
    parameters = {"density": 0.5}  # noqa: RUF012
    source_parameters = {"weight": 0.4}  # noqa: RUF012


class TestModelStock(MergeMethodContract):
    method = "model_stock"
