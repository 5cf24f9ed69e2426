"""Models for other runtimes give the same answers there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import cifarctl
from cifarctl.data import Source
from cifarctl.errors import UsageError


@pytest.fixture(scope="module")
def classifier() -> "cifarctl.LoadedClassifier":
    """The pretrained one."""
    model = cifarctl.load("classifier", device="cpu")
    assert isinstance(model, cifarctl.LoadedClassifier)
    return model


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """uint8 (9, 3, 32, 32)."""
    return Source("synthetic").load("test").images[:9]


@pytest.mark.needs("onnxruntime")
def test_onnxruntime_has_our_logits_for_any_number_of_images(
    classifier: "cifarctl.LoadedClassifier", images: torch.Tensor, tmp_path: Path
) -> None:
    import onnxruntime

    classifier.export(tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    pixels = images.float().numpy() / 255
    for count in (1, 9):
        (logits,) = session.run(None, {"images": pixels[:count]})
        np.testing.assert_allclose(logits, classifier.logits(images[:count]).numpy(), atol=1e-4)
    assert [end.shape[0] for end in (*session.get_inputs(), *session.get_outputs())] == ["batch", "batch"]
    properties = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(properties["classes"])) == classifier.classes


def test_pytorch_runs_its_own_exported_program(
    classifier: "cifarctl.LoadedClassifier", images: torch.Tensor, tmp_path: Path
) -> None:
    classifier.export(tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(images.float() / 255), classifier.logits(images), atol=1e-4, rtol=0)


@pytest.mark.needs("onnxruntime")
def test_an_autoencoder_exports_its_decoder(images: torch.Tensor, tmp_path: Path) -> None:
    import onnxruntime

    model = cifarctl.load("autoencoder", device="cpu")
    assert isinstance(model, cifarctl.LoadedAutoencoder)
    model.export_decoder(tmp_path / "decoder.onnx")
    latents = model.encode(images[:3])
    session = onnxruntime.InferenceSession(str(tmp_path / "decoder.onnx"), providers=["CPUExecutionProvider"])
    (decoded,) = session.run(None, {"latents": latents.numpy()})
    np.testing.assert_allclose(decoded, model.decode(latents).numpy(), atol=1e-4)


def test_another_suffix_is_refused(classifier: "cifarctl.LoadedClassifier", tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.onnx or \.pt2"):
        classifier.export(tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(
    classifier: "cifarctl.LoadedClassifier", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifarctl.export._NEEDED", ("no_such_package",))
    with pytest.raises(UsageError, match="no_such_package") as caught:
        classifier.export(tmp_path / "model.onnx")
    assert "cifarctl[onnx]" in str(caught.value.hint)
