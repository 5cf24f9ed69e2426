"""Weights files: self-sufficient, checked field by field, and never more than data."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cifarctl import models, weights
from cifarctl.errors import WeightsError
from cifarctl.weights import ModelInfo

from py2_pickle import CLASSES, attack
from support import Cifarctl

CPU = torch.device("cpu")
Change = Callable[[dict[str, torch.Tensor], dict[str, str]], object]


@pytest.fixture
def classifier_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config: dict[str, Any] = {"classes": 10, "widths": [24, 24, 24]}
    path = tmp_path / "clf.safetensors"
    weights.save(
        path, models.build("airbench", **config).state_dict(), ModelInfo("classifier", "airbench", config, CLASSES)
    )
    return path


def changed(path: Path, change: Change) -> Path:
    """The file with `change` applied to its tensors and metadata."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    del metadata["sha256"]  # as files of version 0.2 and before
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


def test_a_model_comes_back_with_every_bit(classifier_file: Path) -> None:
    torch.manual_seed(0)
    original = models.build("airbench", classes=10, widths=(24, 24, 24)).eval()
    loaded, info = weights.load_classifier(classifier_file, CPU)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded(images), original.to(memory_format=torch.channels_last)(images))
    assert info.classes == CLASSES
    assert info.created
    assert not loaded.training


@pytest.mark.parametrize("place", [0.02, 0.3, 0.9])  # in the metadata, and among the weights
def test_a_flipped_bit_is_noticed(classifier_file: Path, place: float) -> None:
    content = bytearray(classifier_file.read_bytes())
    start = content.index(b'"classes"')
    at = content.index(b"dog", start) if place < 0.1 else int(place * len(content))
    content[at] ^= 1
    classifier_file.write_bytes(content)
    with pytest.raises(WeightsError, match="its contents do not match its SHA-256"):
        weights.load_classifier(classifier_file, CPU)


def test_the_metadata_is_what_the_design_says(classifier_file: Path) -> None:
    with safe_open(classifier_file, framework="pt") as file:
        metadata = file.metadata()
    names = {
        "format",
        "kind",
        "model",
        "config",
        "classes",
        "data",
        "metrics",
        "training",
        "cifarctl_version",
        "created",
        "sha256",
    }
    assert set(metadata) == names
    assert metadata["format"] == "1"
    assert json.loads(metadata["classes"]) == list(CLASSES)


def test_files_may_store_fewer_bits(classifier_file: Path) -> None:
    def to_bf16(tensors: dict[str, torch.Tensor], _: dict[str, str]) -> None:
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensors[name] = tensor.bfloat16()

    model, _ = weights.load_classifier(changed(classifier_file, to_bf16), CPU)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32, torch.int64}


def set_field(name: str, value: str) -> Change:
    def change(_: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        metadata[name] = value

    return change


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("format", "2", "field format is '2'"),
        ("kind", "banana", "field kind is 'banana'"),
        ("model", "banana", "field model is 'banana'"),
        ("model", "resconv", "field config does not describe"),
        ("config", "{", "field config is not JSON"),
        ("config", "[]", "field config is no JSON object"),
        ("config", '{"widths": [24, 24, 1000000000]}', "field config does not describe"),
        ("config", '{"widths": [24, 24, 32]}', "expected torch.float32"),
        ("config", '{"banana": 1}', "field config does not describe"),
        ("classes", '["a"]', "field classes names 1"),
        ("classes", "[1]", "field classes is no list of names"),
        ("classes", "[" * 100_000, "field classes is not JSON"),
    ],
)
def test_a_field_that_does_not_fit_is_named(classifier_file: Path, field: str, value: str, says: str) -> None:
    with pytest.raises(WeightsError, match=r"clf\.safetensors") as caught:
        weights.load_classifier(changed(classifier_file, set_field(field, value)), CPU)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named(classifier_file: Path) -> None:
    with pytest.raises(WeightsError, match="no field kind"):
        weights.load_classifier(changed(classifier_file, lambda _, metadata: metadata.pop("kind")), CPU)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors, _: tensors.pop("head.weight"), "tensor head.weight is missing"),
        (lambda tensors, _: tensors.update(extra=torch.zeros(1)), "tensor extra is unexpected"),
        (lambda tensors, _: tensors.update({"head.weight": torch.zeros(3)}), "tensor head.weight is torch.float32"),
        (lambda tensors, _: tensors["head.weight"].fill_(float("nan")), "not finite"),
        (lambda tensors, _: tensors["temperature"].fill_(0), "not above 0"),
        (lambda tensors, _: tensors["smoothing"].fill_(-0.1), "not from 0 to 1"),
        (
            lambda tensors, _: tensors.update({"head.weight": tensors["head.weight"].long()}),
            "tensor head.weight is torch.int64",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(classifier_file: Path, change: Change, says: str) -> None:
    with pytest.raises(WeightsError) as caught:
        weights.load_classifier(changed(classifier_file, change), CPU)
    assert says in str(caught.value)


def test_a_file_without_smoothing_loads_as_it_was_calibrated(classifier_file: Path) -> None:
    old, _ = weights.load_classifier(changed(classifier_file, lambda tensors, _: tensors.pop("smoothing")), CPU)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(old(images), old.classify(images) / old.temperature)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello, world", b"\xff" * 64, (10**12).to_bytes(8, "little") + b"{}", pickle.dumps({"a": 1})],
    ids=["empty", "text", "noise", "enormous header", "pickle"],
)
def test_what_is_no_weights_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        weights.load_classifier(path, CPU)


@pytest.mark.parametrize(
    ("name", "metadata", "says", "hint"),
    [
        ("of_others.safetensors", {"format": "pt"}, "no field kind in its metadata", None),
        ("checkpoint.safetensors", {"format": "2", "position": "{}"}, "the checkpoint of a run", "the run's folder"),
        ("newer.safetensors", {"format": "9", "kind": "classifier"}, "format is '9'", "a newer cifarctl may read it"),
        ("model.pth", None, "not a safetensors file", "may run code"),
    ],
)
def test_a_foreign_file_is_named_for_what_it_is(
    tmp_path: Path, name: str, metadata: dict[str, str] | None, says: str, hint: str | None
) -> None:
    path, tensors = tmp_path / name, {"weight": torch.zeros(3)}
    torch.save(tensors, path) if metadata is None else save_file(tensors, path, metadata)
    with pytest.raises(WeightsError, match=says) as caught:
        weights.load_classifier(path, CPU)
    assert caught.value.hint is None if hint is None else hint in str(caught.value.hint)


def test_a_pickle_under_another_name_never_runs(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(attack(f"touch {tmp_path / 'ran'}", 2))
    with pytest.raises(WeightsError):
        weights.load_classifier(path, CPU)
    assert not (tmp_path / "ran").exists()


def test_every_truncation_is_one_error(classifier_file: Path) -> None:
    data = classifier_file.read_bytes()
    for length in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        classifier_file.write_bytes(data[:length])
        with pytest.raises(WeightsError):
            weights.load_classifier(classifier_file, CPU)


def test_an_enormous_tensor_is_refused_unread(classifier_file: Path) -> None:
    data = classifier_file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    count = 1 << 32
    start = header[last]["data_offsets"][0]
    header[last] = {"dtype": "F32", "shape": [count], "data_offsets": [start, start + 4 * count]}
    text = json.dumps(header).encode()
    classifier_file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(classifier_file, 8 + len(text) + start + 4 * count)  # 16 GiB that take no room on the disk
    with pytest.raises(WeightsError, match="bytes are more than its model's tensors can take"):
        weights.load_classifier(classifier_file, CPU)


def test_a_model_outlives_its_file(classifier_file: Path) -> None:
    model, _ = weights.load_classifier(classifier_file, CPU)
    os.truncate(classifier_file, 0)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_the_wrong_kind_says_which_is_needed(cifarctl: Cifarctl, classifier_file: Path, tmp_path: Path) -> None:
    done = cifarctl("reconstruct", "-m", classifier_file, "--data", "synthetic", "-o", tmp_path / "x.png")
    assert done.code == 1
    assert "holds a classifier, but autoencoder weights are needed" in done.error


@pytest.mark.parametrize("name", ["none.safetensors", "folder"])
def test_a_model_that_is_not_there(cifarctl: Cifarctl, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    done = cifarctl("predict", tmp_path / "x.png", "-m", tmp_path / name)
    assert done.code == 1
    assert name in done.error
