"""`gptailor check`: a sound model passes, and each way to be broken is found as what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SmolLM3Config,
)

from gptailor_merge.checking import inference
from gptailor_merge.checking.soundness import SoundnessReport, examine
from gptailor_merge.checking.weight_files import StoredWeights
from gptailor_merge.errors import FamilyError
from gptailor_merge.models.reload import Reloaded, reload
from tests.conftest import DEPTH, write_member
from tests.nested_zoo import DEPTH as NESTED_DEPTH
from tests.nested_zoo import write_nested_family
from tests.zoo import WIDTHS

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
NAMES = [
    "files", "config", "values", "dtypes", "reload", "forward", "generation",
    "tokenizer", "special tokens", "chat template", "llama.cpp",
]  # fmt: skip


@pytest.fixture
def model(family: dict[str, str], tmp_path: Path) -> Path:
    """A sound Llama, to be broken."""
    return Path(shutil.copytree(family["base"], tmp_path / "model"))


@pytest.fixture
def write(family: dict[str, str], tmp_path: Path) -> Callable[[PreTrainedConfig], Path]:
    """Write a random model of a config, with the family's tokenizer."""

    def write_model(config: PreTrainedConfig) -> Path:
        torch.manual_seed(0)
        directory = tmp_path / config.model_type
        made = AutoModelForCausalLM.from_config(config)
        for parameter in made.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        made.to(torch.float32).save_pretrained(directory)
        for file in Path(family["base"]).glob("tokenizer*"):
            shutil.copy(file, directory)
        return directory

    return write_model


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def retensor(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a model of one file."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def shard(directory: Path) -> Path:
    """Split a model in two files; the index."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, directory / file, metadata={"format": "pt"})
    index = directory / "model.safetensors.index.json"
    size = sum(t.nbytes for t in tensors.values())
    weight_map = {name: file for file, part in parts.items() for name in part}
    index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}))
    return index


def verdicts(report: SoundnessReport) -> dict[str, tuple[str, str]]:
    """Name -> verdict and sentence of all that is not ok."""
    return {f.name: (f.verdict, f.sentence) for f in report.findings if f.verdict != "ok"}


def only(directory: Path, name: str, verdict: str = "fail") -> str:
    """The sentence of the one finding of a verdict; anything else that is not ok was not tried."""
    found = verdicts(examine(directory))
    assert [n for n, (v, s) in found.items() if not s.startswith("not tried")] == [name], found
    assert found[name][0] == verdict, found
    return found[name][1]


def test_a_sound_model(model: Path) -> None:
    report = examine(model)
    assert [f.name for f in report.findings] == NAMES
    assert (verdicts(report), report.sound) == ({}, True)
    tensors = load_file(model / "model.safetensors")
    assert report.totals.layers == DEPTH
    assert report.totals.parameters == sum(t.numel() for t in tensors.values())
    assert report.totals.embeddings == 2 * 64 * 16
    in_layer = sum(t.numel() for n, t in tensors.items() if n.startswith("model.layers.3."))
    assert (report.totals.smallest_layer, report.totals.largest_layer) == (in_layer, in_layer)
    assert report.totals.dtypes == {"model.safetensors": ["BF16"]}


def test_sound_in_shards_tied_and_with_a_template(make_family: Any, tmp_path: Path) -> None:
    model = Path(shutil.copytree(make_family(tied=True)["base"], tmp_path / "model"))
    shard(model)
    edit(model / "tokenizer_config.json", chat_template=TEMPLATE)
    report = examine(model)
    assert verdicts(report) == {}
    assert report.totals.embeddings == 64 * 16
    assert set(report.totals.dtypes) == {"one.safetensors", "two.safetensors"}


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(num_hidden_layers=4, **WIDTHS),
        Gemma3TextConfig(num_hidden_layers=7, sliding_window=4, query_pre_attn_scalar=4, **WIDTHS),
        SmolLM3Config(num_hidden_layers=5, **WIDTHS),
    ],
    ids=lambda config: config.model_type,
)
def test_sound_models_of_other_architectures(write: Any, config: PreTrainedConfig) -> None:
    """Gemma3's window is shorter than what is generated, so its cache is a sliding one."""
    assert verdicts(examine(write(config))) == {}


def test_no_model_directory(tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="no such directory"):
        examine(tmp_path / "none")
    with pytest.raises(FamilyError, match=r"no config\.json"):
        examine(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(FamilyError, match="expected an object, found list"):
        examine(tmp_path)


def test_a_missing_tensor(model: Path) -> None:
    retensor(model, lambda tensors: tensors.pop("model.layers.3.mlp.up_proj.weight"))
    assert "missing_keys: ['model.layers.3.mlp.up_proj.weight']" in only(model, "reload")


def test_an_extra_tensor(model: Path) -> None:
    retensor(model, lambda tensors: tensors.update({"model.layers.3.mlp.new.weight": torch.zeros(2)}))
    assert "unexpected_keys: ['model.layers.3.mlp.new.weight']" in only(model, "reload")


def test_a_tensor_of_another_shape(model: Path) -> None:
    retensor(model, lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}))
    assert "mismatched_keys" in only(model, "reload")
    assert "model.norm.weight" in only(model, "reload")


def test_a_config_that_transformers_refuses(model: Path) -> None:
    edit(model / "config.json", num_attention_heads=3)
    assert only(model, "config").startswith("transformers refuses it: StrictDataclassClassValidationError")


def test_a_config_of_another_architecture(model: Path) -> None:
    edit(model / "config.json", model_type="t5", architectures=["T5ForConditionalGeneration"])
    assert "missing_keys: ['decoder.block.0" in only(model, "reload")


TINY_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "other names for the depth": ("GPT2LMHead", {"n_embd": 16, "n_layer": 3, "n_head": 4}),
    "one matrix for queries, keys and values": ("BloomForCausalLM", {"n_layer": 3, "n_head": 4}),
    "a period instead of a list": (
        "RecurrentGemmaForCausalLM",
        {"lru_width": 16, "attention_window_size": 8},
    ),
    "states instead of a cache": ("MambaForCausalLM", {"state_size": 4}),
    "an encoder with a decoder": (
        "T5ForConditionalGeneration",
        {"d_model": 16, "d_ff": 24, "d_kv": 4, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 2},
    ),
    "other names, an encoder, a decoder": (
        "BartForConditionalGeneration",
        {
            "d_model": 16,
            "encoder_layers": 3,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
        },
    ),
    "no language model": ("BertModel", {}),
}
"""A shape of model that is no plain list of layers -> (its class, config values)."""


@pytest.mark.parametrize("shape", TINY_KINDS)
def test_sound_models_of_any_shape(shape: str, family: dict[str, str], tmp_path: Path) -> None:
    classes, values = TINY_KINDS[shape]
    made_of = getattr(transformers, f"{classes}Model" if classes.endswith("Head") else classes)
    common = {**WIDTHS, "num_hidden_layers": 3} if not {"n_layer", "d_model"} & values.keys() else {}
    ids = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    if "decoder" in shape:
        ids["decoder_start_token_id"] = 0
    torch.manual_seed(0)
    made_of(made_of.config_class(**{**common, **ids, **values})).save_pretrained(tmp_path)
    for file in Path(family["base"]).glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    report = examine(tmp_path)
    assert report.sound, report.findings
    (tried,) = [finding.sentence for finding in report.findings if finding.name == "generation"]
    assert ("not tried" in tried) == ("decoder" in shape or shape.startswith("no")), tried


def test_a_language_model_inside_another(family: dict[str, str], tmp_path: Path) -> None:
    """The layers are those of the language model, though the vision tower has more."""
    model = Path(write_nested_family(tmp_path, "gemma3")["base"])
    for file in Path(family["base"]).glob("tokenizer*"):
        shutil.copy(file, model)
    report = examine(model)
    assert report.sound
    assert report.totals.layers == NESTED_DEPTH
    assert "gemma3, 6 layers, as many as are stored" in [finding.sentence for finding in report.findings]
    document = json.loads((model / "config.json").read_text())
    document["text_config"]["layer_types"].append("full_attention")
    document["text_config"]["num_hidden_layers"] = 7
    (model / "config.json").write_text(json.dumps(document))
    sentence = verdicts(examine(model))["config"][1]
    assert "num_hidden_layers is 7, the safetensors files hold layers 0 to 5" in sentence


@pytest.mark.parametrize("stored", [3, 7])
def test_another_number_of_layers_than_stored(family: dict[str, str], tmp_path: Path, stored: int) -> None:
    """mergekit writes such configs for architectures that it infers."""
    model = write_member(tmp_path / "model", 0, depth=stored)
    edit(model / "config.json", num_hidden_layers=DEPTH)
    found = verdicts(examine(model))
    assert {name for name, (verdict, _) in found.items() if verdict == "fail"} == {"config", "reload"}
    assert (
        f"num_hidden_layers is 5, the safetensors files hold layers 0 to {stored - 1}" in found["config"][1]
    )


def test_a_list_per_layer_of_the_wrong_length(write: Any) -> None:
    """transformers does not even read such a config; the reason must not hide behind that."""
    model = write(Qwen3Config(num_hidden_layers=4, **WIDTHS))
    edit(model / "config.json", layer_types=["full_attention"] * 6)
    sentence = only(model, "config")
    assert sentence.startswith("layer_types has 6 entries, the model has 4 layers")
    assert "transformers refuses it" in sentence


def test_values_that_are_not_finite(model: Path) -> None:
    retensor(model, lambda tensors: tensors["model.layers.2.mlp.up_proj.weight"][0, 0].fill_(float("nan")))
    assert only(model, "values").startswith("model.layers.2.mlp.up_proj.weight")


def test_finite_values_that_overflow(tmp_path: Path) -> None:
    model = write_member(tmp_path / "model", 0, dtype=torch.float16)
    retensor(model, lambda tensors: tensors["model.norm.weight"].fill_(6e4))
    assert "logits that are not finite" in only(model, "forward")


def test_a_dtype_that_is_not_the_stored_one(model: Path) -> None:
    edit(model / "config.json", dtype="float32")
    assert only(model, "dtypes", "warn").startswith("stored are 48 BF16, config.json has dtype 'float32'")


def test_a_dtype_that_is_no_name(model: Path) -> None:
    edit(model / "config.json", dtype=["float32"])
    found = {finding.name: finding.sentence for finding in examine(model).findings}
    assert found["dtypes"].startswith("stored are 48 BF16, config.json has dtype ['float32']")


def test_a_layer_that_reads_the_cache_of_another(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model composed of layers that kept their old index would do this."""

    def confused(directory: Path) -> Reloaded:
        loaded = reload(directory)
        loaded.model.model.layers[3].self_attn.layer_idx = 1
        return loaded

    monkeypatch.setattr(inference, "reload", confused)
    assert "with and without the KV cache" in only(model, "generation")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            torch.nn.Linear(16, 63, dtype=torch.bfloat16),
            "logits of the shape [1, 8, 63], expected [1, 8, 64]",
        ),
        (torch.nn.Linear(15, 64, dtype=torch.bfloat16), "breaks: RuntimeError"),
    ],
)
def test_a_forward_that_goes_wrong(
    model: Path, monkeypatch: pytest.MonkeyPatch, head: torch.nn.Module, message: str
) -> None:
    """An architecture whose config transformers believes may still have such a head."""

    def beheaded(directory: Path) -> Reloaded:
        loaded = reload(directory)
        loaded.model.lm_head = head
        return loaded

    monkeypatch.setattr(inference, "reload", beheaded)
    assert message in only(model, "forward")


def test_a_degenerate_output_is_told_and_no_failure(model: Path) -> None:
    retensor(model, lambda tensors: tensors["lm_head.weight"].zero_())
    report = examine(model)
    assert verdicts(report) == {}
    assert any(f.sentence.endswith("the output repeats one token") for f in report.findings)


def test_logits_that_differ_by_rounding_are_no_failure(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokens with almost the same logits: which of them comes first is no matter of the cache."""

    def noisy(directory: Path) -> Reloaded:
        loaded = reload(directory)
        loaded.model.lm_head.weight.data[:] = loaded.model.lm_head.weight[0]
        loaded.model.lm_head.register_forward_hook(
            lambda module, given, out: out + 1e-4 * torch.randn(out.shape) * out.abs().max()
        )
        return Reloaded(loaded.model.float(), ())

    monkeypatch.setattr(inference, "reload", noisy)
    report = examine(model)
    (generation,) = (f for f in report.findings if f.name == "generation")
    assert (generation.verdict, "then a tie in rounding" in generation.sentence) == ("ok", True)


def test_a_tokenizer_larger_than_the_embeddings(tmp_path: Path) -> None:
    model = write_member(tmp_path / "model", 0, vocabulary=60)
    assert only(model, "tokenizer") == "64 tokens for 60 rows of the embeddings; '\\\\' has none"


def test_a_tokenizer_that_loses_text(model: Path) -> None:
    core = Tokenizer(models.WordLevel({" ": 0, "M": 1}, unk_token=" "))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(model)
    assert "comes back as" in only(model, "tokenizer")


def test_a_broken_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    assert "its tokenizer cannot be read" in only(model, "tokenizer")


def test_no_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert only(model, "tokenizer", "warn").startswith("there is none")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_special_token_outside_the_vocabulary(model: Path, file: str) -> None:
    edit(model / file, eos_token_id=[0, 64])
    assert only(model, "special tokens") == f"{file}: eos_token_id is 64; expected 0 to 63"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}", "cannot be rendered: TemplateSyntaxError"),
        ("{{ messages[0].content }}", "without '2 + 3 is 5.'"),
        ("{{ raise_exception('no assistants') }}", "cannot be rendered: TemplateError: no assistants"),
    ],
)
def test_a_broken_chat_template(model: Path, template: str, message: str) -> None:
    edit(model / "tokenizer_config.json", chat_template=template)
    assert message in only(model, "chat template")


def test_an_index_that_names_the_wrong_shard(model: Path) -> None:
    index = shard(model)
    weight_map = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map={**weight_map, "model.norm.weight": "one.safetensors"})
    assert weight_map["model.norm.weight"] == "two.safetensors"
    assert "model.norm.weight is not in one.safetensors (1 such tensors)" in only(model, "files")


def test_an_index_that_leaves_a_tensor_out(model: Path) -> None:
    index = shard(model)
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map.pop("model.norm.weight")
    edit(index, weight_map=weight_map)
    found = StoredWeights.read(model).errors
    assert found == (
        "model.safetensors.index.json: model.norm.weight is stored and not listed (1 such tensors)",
    )


def test_a_missing_shard(model: Path) -> None:
    shard(model)
    (model / "two.safetensors").unlink()
    found = {name for name, (verdict, _) in verdicts(examine(model)).items() if verdict == "fail"}
    assert {"files", "reload"} <= found


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: edit(shard(model), metadata={"total_size": 7}), "total_size is 7, the files hold"),
        (
            lambda model: shutil.copy(model / "model.safetensors", model / "a.safetensors"),
            "a.safetensors: no part",
        ),
        (lambda model: (model / "training_args.bin").touch(), "training_args.bin: pickle files"),
    ],
    ids=["size", "unlisted", "pickle"],
)
def test_files_to_be_mended(model: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(model)
    assert message in only(model, "files", "warn")


def test_a_large_file(model: Path) -> None:
    """Sparse: five gigabytes of nothing take no room."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [5_000_000_001], "data_offsets": [0, 5_000_000_001]}})
    with (model / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 5_000_000_001)
    (remark,) = StoredWeights.read(model).remarks
    assert remark.startswith("model.safetensors: larger than 5 GB; save_pretrained(…, max_shard_size='5GB')")


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, (1 << 60).to_bytes(8, "little")])
def test_a_file_that_is_no_safetensors_file(model: Path, damage: bytes) -> None:
    (model / "model.safetensors").write_bytes(damage)
    found = {name for name, (verdict, _) in verdicts(examine(model)).items() if verdict == "fail"}
    assert found == {"files", "config", "reload"}


def test_a_model_in_pickle_files_only(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    found = verdicts(examine(model))
    assert {name for name, (verdict, _) in found.items() if verdict == "fail"} == {
        "files",
        "config",
        "reload",
    }
    assert "no *.safetensors file" in found["files"][1]
    assert "pytorch_model.bin: pickle files" in found["files"][1]


def test_a_gemma3_whose_pattern_is_shifted(write: Any) -> None:
    """One sliding layer removed in front: transformers goes by the list, llama.cpp by the index."""
    kinds = [*["sliding_attention"] * 4, "full_attention", *["sliding_attention"] * 5, "full_attention"]
    model = write(
        Gemma3TextConfig(num_hidden_layers=11, layer_types=kinds, query_pre_attn_scalar=4, **WIDTHS)
    )
    sentence = only(model, "llama.cpp", "warn")
    assert "llama.cpp takes every 6th layer of gemma3_text for 'full_attention'" in sentence
    assert "layers 4, 5, 10 as the wrong kind" in sentence


def test_examining_changes_nothing(model: Path) -> None:
    before = {file: file.read_bytes() for file in model.iterdir()}
    assert examine(model).to_json() == examine(model).to_json()
    assert {file: file.read_bytes() for file in model.iterdir()} == before
