"""Graphs are recorded here by keeping the run: it reads the places that the graph has copied to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedConfig

from gptailor_merge.composing import graphs as graphs_module
from gptailor_merge.composing.graphs import Computation, LayerGraphs
from gptailor_merge.composing.prefixes import advance

IDS = torch.randint(0, 64, (3, 11), generator=torch.Generator().manual_seed(0))


class Recorded:
    """Records a run as a CUDA graph is: what runs it again overwrites its output."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Computation) -> tuple[Callable[[], None], Any]:
        self.recorded += 1
        output = tree_map(torch.clone, run())

        def replay() -> None:
            self.replayed += 1
            tree_map(lambda old, new: old.copy_(new), output, run())

        return replay, output


LLAMA = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=5, num_attention_heads=4
)
GEMMA = Gemma3TextConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=4,
    layer_types=["sliding_attention", "full_attention"] * 3,
)


@pytest.mark.parametrize(("config", "kinds"), [(LLAMA, 1), (GEMMA, 2)], ids=["llama", "gemma3"])
def test_models_run_by_graphs_are_those_that_run_by_themselves(config: PreTrainedConfig, kinds: int) -> None:
    """Layers of two models, at two lengths, share the graphs of their structure."""
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(AutoModelForCausalLM.from_config(config).eval())
    recorder = Recorded()
    graphs = LayerGraphs(recorder)
    for _ in range(3):
        for ids in (IDS, IDS[:2, :7]):
            for model in models:
                count = model.config.num_hidden_layers
                every = set(range(-1, count))
                expected = advance(model, ids, None, range(count), every)
                states = advance(model, ids, None, range(count), every, graphs=graphs)
                assert all(map(torch.equal, states, expected))
    assert recorder.recorded == 2 * kinds
    assert recorder.replayed > 5 * recorder.recorded


class Positioned(nn.Module):
    """A layer that does what its position says."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.weight = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * self.weight + self.layer_idx


def test_a_graph_stands_for_the_positions_only_where_it_gives_the_same() -> None:
    recorder = Recorded()
    graphs = LayerGraphs(recorder)
    layers = [Positioned(0), Positioned(1)]
    with torch.inference_mode():
        for step in range(3):
            for position, layer in enumerate(layers):
                hidden = torch.full((1, 4, 2), float(step))
                assert torch.equal(graphs.run(layer, position, hidden), layer(hidden))
    assert recorder.recorded == 1
    assert recorder.replayed == 1 + 2 + 1  # each position was tried, and the first one goes by the graph


def test_what_cannot_be_recorded_or_is_large_runs_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: Computation) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    layer, hidden = Positioned(3), torch.ones(1, 4, 2)
    with torch.inference_mode():
        graphs = LayerGraphs(refuse)
        for _ in range(2):
            assert torch.equal(graphs.run(layer, 0, hidden), layer(hidden))
        recorder = Recorded()
        monkeypatch.setattr(graphs_module, "SMALL_WORK", 7)  # two weights, four tokens
        assert torch.equal(LayerGraphs(recorder).run(layer, 0, hidden), layer(hidden))
    assert recorder.recorded == 0
