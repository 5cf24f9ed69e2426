"""The package for Python programs: the same verbs as the commands, and no torch before one is used."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pytest
import torch

import cifarctl
from cifarctl.data import Source
from cifarctl.errors import DataError, ImageError, WeightsError

from py2_pickle import SmallArchive
from support import Cifarctl


def test_importing_the_package_imports_no_torch() -> None:
    check = "import sys, cifarctl; assert 'load' in dir(cifarctl); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'banana'"):
        _ = cifarctl.banana


def test_a_classifier_answers_as_predict_does(installed: Cifarctl, classifier_run: Path, photos: Path) -> None:
    paths = sorted(photos.iterdir())[:5]
    arguments = ("--top-k", 3, "--format", "json", "--precision", "fp32")
    answers = installed("predict", *paths, "-m", classifier_run, *arguments).json
    model = cifarctl.load(classifier_run)
    assert isinstance(model, cifarctl.LoadedClassifier)
    predictions = model.predict(paths, top_k=3)
    assert [prediction.label for prediction in predictions] == [answer["label"] for answer in answers]
    for prediction, answer in zip(predictions, answers, strict=True):
        assert prediction.confidence == pytest.approx(answer["confidence"], abs=1e-5)
        assert [label for label, _ in prediction.top] == [entry["label"] for entry in answer["top"]]


def test_images_may_be_files_arrays_or_tensors(classifier_run: Path, photos: Path) -> None:
    model = cifarctl.load_classifier(classifier_run)
    images = Source("synthetic").load("test").images[:4]
    expected = model.logits(images)
    paths = sorted(photos.iterdir())[:4]
    for same in (images.numpy(), images.float() / 255, paths, [str(path) for path in paths]):
        assert torch.allclose(model.logits(same), expected, atol=1e-4)
    assert torch.allclose(model.logits(paths[0]), expected[:1], atol=1e-4)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 32, 32, 3), np.uint8), torch.zeros(3, 32, 32), np.zeros((1, 3, 32, 32), int)]
)
def test_another_shape_says_what_came(classifier_run: Path, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"images are .*, not uint8 or float \(N, 3, 32, 32\)"):
        cifarctl.load_classifier(classifier_run).predict(wrong)


def test_a_file_that_is_no_image_is_named(classifier_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.jpg: no such file"):
        cifarctl.load_classifier(classifier_run).predict(tmp_path / "none.jpg")


def test_an_autoencoder_encodes_and_decodes(autoencoder_run: Path) -> None:
    model = cifarctl.load_autoencoder(autoencoder_run)
    images = Source("synthetic").load("test").images[:4]
    latents = model.encode(images)
    assert latents.shape == (4, 64)
    assert torch.allclose(model.decode(latents), model.reconstruct(images), atol=1e-5)
    assert isinstance(cifarctl.evaluate(model).metrics["psnr"], float)


def test_the_pretrained_models_are_typed_by_their_names() -> None:
    """mypy checks the types that `assert_type` states."""
    by_default = assert_type(cifarctl.load(), cifarctl.LoadedClassifier)
    by_name = assert_type(cifarctl.load("classifier"), cifarctl.LoadedClassifier)
    for classifier in (by_default, by_name, cifarctl.load_classifier()):
        assert type(classifier) is cifarctl.LoadedClassifier
        assert classifier.info.model == "airbench"
    for autoencoder in (
        assert_type(cifarctl.load("autoencoder"), cifarctl.LoadedAutoencoder),
        assert_type(cifarctl.load_autoencoder(), cifarctl.LoadedAutoencoder),
    ):
        assert type(autoencoder) is cifarctl.LoadedAutoencoder
        assert autoencoder.info.model == "resconv"


def test_what_a_file_holds_is_known_when_it_is_read(classifier_run: Path, autoencoder_run: Path) -> None:
    either = cifarctl.load(classifier_run)
    assert_type(either, cifarctl.LoadedClassifier | cifarctl.LoadedAutoencoder)
    assert type(either) is cifarctl.LoadedClassifier
    assert type(cifarctl.load(str(autoencoder_run))) is cifarctl.LoadedAutoencoder


def test_a_model_of_the_other_kind_is_refused(classifier_run: Path, autoencoder_run: Path) -> None:
    with pytest.raises(WeightsError, match="holds an autoencoder, where classifier weights are needed"):
        cifarctl.load_classifier(autoencoder_run)
    with pytest.raises(WeightsError, match="holds a classifier, where autoencoder weights are needed"):
        cifarctl.load_autoencoder(classifier_run)


def test_a_run_is_trained_loaded_and_measured(tmp_path: Path) -> None:
    run = cifarctl.train_classifier(tmp_path / "run", data="synthetic", limit=500, arch="mlp", epochs=1)
    assert run.summary["epochs"] == 1
    model = cifarctl.load(run.path)
    report = cifarctl.evaluate(model)
    assert report.metrics["accuracy"] == run.summary["test"]["accuracy"]
    ae = cifarctl.train_autoencoder(tmp_path / "ae", data="synthetic", limit=250, arch="conv2", latent_dim=64, epochs=1)
    assert ae.summary["kind"] == "autoencoder"


def test_classes_that_the_model_does_not_know_are_no_score_of_zero(classifier_run: Path, image_folder: Path) -> None:
    with pytest.raises(DataError, match="the model: knows the classes"):
        cifarctl.evaluate(cifarctl.load(classifier_run), data=str(image_folder))


def test_download_leaves_what_is_there(installed: Cifarctl, archive: SmallArchive, tmp_path: Path) -> None:
    folder = {"CIFARCTL_DATA_DIR": str(tmp_path)}
    assert installed("download", "--from", archive.path, "--sha256", archive.sha256, env=folder).code == 0
    data_file = tmp_path / "cifar10.safetensors"
    before = data_file.stat().st_mtime_ns
    script = "import cifarctl; print(cifarctl.download())"
    done = subprocess.check_output([sys.executable, "-c", script], text=True, env={**os.environ, **folder})
    assert Path(done.strip()) == data_file
    assert data_file.stat().st_mtime_ns == before
