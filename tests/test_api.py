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
from cifarctl.errors import ChangedDataError, DataError, ImageError, UsageError, WeightsError
from cifarctl.training.loop import EpochDone
from cifarctl.training.session import Event, Finished, Started

from py2_pickle import SmallArchive
from support import Cifarctl, model_bytes

QUICK: dict[str, Any] = {"arch": "mlp", "epochs": 1, "batch_size": 50, "device": "cpu"}


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
    for same in (
        images.numpy(),
        images.float() / 255,
        list(images),
        list(images.numpy()),
        paths,
        list(map(str, paths)),
    ):
        assert torch.allclose(model.logits(same), expected, atol=1e-4)
    assert torch.allclose(model.logits(paths[0]), expected[:1], atol=1e-4)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 16, 16, 3), np.uint8), torch.zeros(3, 32, 32), np.zeros((1, 3, 32, 32), int)]
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
    assert torch.equal(model.decode(latents.numpy()), model.decode(latents))
    for wrong, error in ((latents[:, :3], ValueError), (latents[0], ValueError), ([1.0], TypeError)):
        with pytest.raises(error, match="latents are"):
            model.decode(wrong)  # type: ignore[arg-type]
    assert cifarctl.evaluate(str(autoencoder_run)).metrics == cifarctl.evaluate(model).metrics


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
    with pytest.raises(WeightsError, match="holds an autoencoder, but classifier weights are needed"):
        cifarctl.load_classifier(autoencoder_run)
    with pytest.raises(WeightsError, match="holds a classifier, but autoencoder weights are needed"):
        cifarctl.load_autoencoder(classifier_run)


def test_a_run_is_trained_loaded_and_measured(tmp_path: Path) -> None:
    run = cifarctl.train_classifier(tmp_path / "run", data="synthetic", limit=500, arch="mlp", epochs=1)
    assert run.summary["epochs"] == 1
    model = run.load()
    report = cifarctl.evaluate(model)
    assert report.metrics["accuracy"] == run.summary["test"]["accuracy"]
    ae = cifarctl.train_autoencoder(tmp_path / "ae", data="synthetic", limit=250, arch="conv2", latent_dim=64, epochs=1)
    assert ae.summary["kind"] == "autoencoder"


def test_a_run_gives_its_events_its_history_and_its_model(tmp_path: Path) -> None:
    events: list[Event] = []
    run = cifarctl.train_classifier(
        tmp_path / "run",
        **{**QUICK, "epochs": 2},
        data="synthetic",
        limit=100,
        val_size=50,
        precision="fp32",
        tensorboard=False,
        on_event=events.append,
    )
    assert (type(events[0]), type(events[-1])) == (Started, Finished)
    assert isinstance(events[0], Started)
    assert (events[0].train, events[0].val, events[0].precision) == (100, 50, "fp32")
    assert run.history == [event.history[-1] for event in events if isinstance(event, EpochDone)]
    assert [record["epoch"] for record in run.history] == [1, 2]
    assert all(type(record[name]) is int for record in run.history for name in ("epoch", "step"))
    assert not list(run.path.glob("events.out.tfevents.*"))
    assert len(run.load().classes) == 10


def test_measuring_and_predicting_tell_how_far_they_have_come(classifier_run: Path, photos: Path) -> None:
    model = cifarctl.load_classifier(classifier_run, device="cpu")
    events: list[cifarctl.Progress] = []
    report = cifarctl.evaluate(model, on_event=events.append)
    assert (events[0], events[-1]) == tuple(cifarctl.Progress("Classifying", done, report.n) for done in (0, report.n))
    events.clear()
    model.predict(sorted(photos.iterdir()), on_event=events.append)
    assert events[-1] == cifarctl.Progress("Classifying", 30, 30)
    with pytest.raises(cifarctl.CifarctlError, match="`on_event` is 3, not a function"):
        cifarctl.evaluate(model, on_event=3)  # type: ignore[call-overload]


class Stop(Exception):  # noqa: N818 (it is no error)
    """Raised to end a run."""


def stop_after_an_epoch(event: Event) -> None:
    """For `on_event`."""
    if isinstance(event, EpochDone):
        raise Stop


def test_a_broken_run_goes_on_with_the_same_call_alone(tmp_path: Path) -> None:
    def start(out: Path, **more: Any) -> cifarctl.Run[cifarctl.LoadedClassifier]:
        return cifarctl.train_classifier(out, **{**QUICK, "epochs": 2, "data": "synthetic", "limit": 100, **more})

    with pytest.raises(Stop):
        start(tmp_path / "broken", on_event=stop_after_an_epoch)
    with pytest.raises(UsageError, match=r"^`seed`: the run was started with 0"):
        start(tmp_path / "broken", resume=True, seed=1)
    with pytest.raises(UsageError, match=r"^`epochs`: the run was started with 2"):
        start(tmp_path / "broken", resume=True, epochs=3)
    with pytest.raises(UsageError, match=r"^`data`: the run was started with synthetic"):
        start(tmp_path / "broken", resume=True, data="cifar10")
    resumed = start(tmp_path / "broken", resume=True)
    assert len(resumed.history) == 2
    assert model_bytes(resumed.path) == model_bytes(start(tmp_path / "whole").path)


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """300 images and their labels."""
    drawn = Source("synthetic").load("test").take(torch.arange(300))
    return drawn.images, drawn.labels


@pytest.fixture(scope="module")
def run(
    data: tuple[torch.Tensor, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> cifarctl.Run[cifarctl.LoadedClassifier]:
    """A classifier that was trained on them."""
    return cifarctl.train_classifier(tmp_path_factory.mktemp("arrays") / "run", data=data, **QUICK)


class TestArrays:
    """Data of the program's own."""

    def test_a_classifier_is_measured_on_the_split_of_its_training(
        self, run: cifarctl.Run[cifarctl.LoadedClassifier], data: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        model = run.load()
        call = "cifarctl.train_classifier(out, data=arrays, arch='mlp', epochs=1, batch_size=50)"
        assert model.info.training["command"] == call, "no command line could give it the arrays"
        assert model.classes == tuple("0123456789")
        for same in (data, (data[0].numpy().transpose(0, 2, 3, 1), data[1].numpy()), cifarctl.Arrays(data)):
            report = cifarctl.evaluate(model, data=same)
            assert report.n == run.summary["test"]["n"] == 30
            assert report.metrics["accuracy"] == run.summary["test"]["accuracy"]
            assert cifarctl.evaluate(model, data=same, split="val").n == 27

    def test_other_data_is_all_for_testing(
        self, run: cifarctl.Run[cifarctl.LoadedClassifier], data: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        model = run.load()
        few = (data[0][:7], data[1][:7])
        answers = model.logits(few[0]).argmax(1)
        assert cifarctl.evaluate(model, data=few).n == 7
        assert cifarctl.evaluate(model, data=few).metrics["accuracy"] == int((answers == few[1]).sum()) / 7
        with pytest.raises(ChangedDataError, match="not the data that the model was trained on, so there is no val"):
            cifarctl.evaluate(model, data=few, split="val")
        darker = cifarctl.Arrays((data[0] // 2, data[1]))
        with pytest.raises(ChangedDataError, match="of the 270 images in train, some have other pixels or labels"):
            cifarctl.evaluate(model, data=darker, split="train")
        with pytest.raises(ValueError, match="test labels: up to 10, but there are 10 classes"):
            cifarctl.evaluate(model, data=(few[0], few[1] * 0 + 10))

    def test_without_them_it_says_that_they_must_be_given(
        self, run: cifarctl.Run[cifarctl.LoadedClassifier], request: pytest.FixtureRequest
    ) -> None:
        command: Cifarctl = request.getfixturevalue("cifarctl")
        with pytest.raises(DataError, match="a Python program's own arrays were trained on"):
            cifarctl.evaluate(run.load())
        done = command("evaluate", "-m", run.path)
        assert (done.code, "<arrays>: a Python program's own arrays" in done.error) == (1, True)
        assert "hint: --data takes them again, from Python, or names another data set" in done.err
        other = command("evaluate", "-m", run.path, "--data", "synthetic")
        assert (other.code, "knows the classes of other data" in other.error) == (1, True)

    def test_a_broken_run_goes_on_with_the_same_arrays_alone(
        self,
        run: cifarctl.Run[cifarctl.LoadedClassifier],
        data: tuple[torch.Tensor, torch.Tensor],
        request: pytest.FixtureRequest,
        tmp_path: Path,
    ) -> None:
        command: Cifarctl = request.getfixturevalue("cifarctl")
        out = tmp_path / "run"
        with pytest.raises(Stop):
            cifarctl.train_classifier(out, data=data, on_event=stop_after_an_epoch, **QUICK)
        done = command("train-clf", "--resume", "--out", out)
        assert (done.code, "a Python program's own arrays" in done.error) == (1, True)
        with pytest.raises(ChangedDataError, match="other data than when the run was started"):
            cifarctl.train_classifier(out, data=(data[0], data[1].flip(0)), resume=True, **QUICK)
        resumed = cifarctl.train_classifier(out, data=data, resume=True, **QUICK)
        assert model_bytes(resumed.path) == model_bytes(run.path)

    def test_an_autoencoder_needs_no_labels(self, data: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
        few: dict[str, Any] = {"arch": "conv2", "latent_dim": 64, "epochs": 1, "batch_size": 50}
        run = cifarctl.train_autoencoder(tmp_path / "run", data=data[0].float() / 255, **few)
        report = cifarctl.evaluate(run.load(), data=data[0])
        assert report.n == 30
        assert report.metrics["psnr"] == pytest.approx(run.summary["test"]["psnr"])
        with pytest.raises(DataError, match="a Python program's own arrays were trained on"):
            cifarctl.evaluate(run.load(), data=data[0][:5])  # the principal components are of the training images
        both = cifarctl.Arrays(data[0], test=data[0][:5])
        assert cifarctl.evaluate(run.load(), data=both).n == 5


def test_classes_that_the_model_does_not_know_are_no_score_of_zero(classifier_run: Path, image_folder: Path) -> None:
    with pytest.raises(DataError, match="not among the model's classes: blue, red"):
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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"precision": "banana"}, "`precision` is 'banana', not one of: auto, fp32, bf16, fp16"),
        ({"device": "banana"}, "`device` is 'banana', not one of"),
        ({"limit": 0}, "`limit` is 0, not 1 or more"),
        ({"seed": -1}, "`seed` is -1, not 0 or more"),
        ({"val_size": "3"}, "`val_size` is '3', not a whole number or null"),
    ],
)
def test_a_value_of_another_type_is_refused_before_the_run(
    tmp_path: Path, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(cifarctl.CifarctlError, match=says):
        cifarctl.train_classifier(tmp_path / "run", data="synthetic", **arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"data": None}, "`data` is of type NoneType, not a name, a path or arrays"),
        ({"data": 3}, "`data` is of type int, not a name"),
        ({"data": "synthetic", "on_event": 3}, "`on_event` is 3, not a function"),
    ],
)
def test_an_argument_of_another_type_is_refused_in_a_sentence(
    tmp_path: Path, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        cifarctl.train_classifier(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("images", "error", "says"),
    [
        (3, TypeError, "images are of type int, not arrays, tensors or paths"),
        ([3], TypeError, "images are a list of int, not all arrays or all paths"),
        ([], ValueError, "images: an empty list"),
        ([np.zeros((3, 32, 32), np.uint8), np.zeros((32, 32, 3), np.uint8)], ValueError, "of several shapes"),
    ],
)
def test_images_of_another_type_are_refused_in_a_sentence(images: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        cifarctl.load_classifier("classifier", device="cpu").predict(images)
    with pytest.raises(TypeError, match="model is of type int, not a loaded model, a path or a name"):
        cifarctl.evaluate(3)  # type: ignore[call-overload]


class TestImages:
    """What a loaded model takes."""

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> cifarctl.LoadedClassifier:
        return cifarctl.load_classifier("classifier", device="cpu")

    def test_channels_may_come_last(self, model: cifarctl.LoadedClassifier) -> None:
        images = Source("synthetic").load("test").images[:3]
        assert torch.equal(model.logits(images.permute(0, 2, 3, 1).numpy()), model.logits(images))

    @pytest.mark.parametrize("pixels", [255.0, -0.1, float("nan")])
    def test_floats_that_are_no_pixels_are_refused(self, model: cifarctl.LoadedClassifier, pixels: float) -> None:
        with pytest.raises(ValueError, match="pixels from 0 to 1"):
            model.predict(torch.full((1, 3, 32, 32), pixels))

    @pytest.mark.parametrize("top_k", [0, 11])
    def test_there_are_as_many_answers_as_classes(self, model: cifarctl.LoadedClassifier, top_k: int) -> None:
        with pytest.raises(ValueError, match=f"top_k is {top_k}, not from 1 to 10"):
            model.predict(torch.zeros(1, 3, 32, 32), top_k=top_k)

    def test_a_split_must_be_one(self, model: cifarctl.LoadedClassifier) -> None:
        with pytest.raises(ValueError, match="split is 'banana', not one of: train, val, test"):
            cifarctl.evaluate(model, data="synthetic", split="banana")  # type: ignore[call-overload]
