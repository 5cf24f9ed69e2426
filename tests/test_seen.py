"""Was a model trained with the images that it is measured on, or that a new run holds out? That is noticed, or said to
be unknown, wherever they lie and whatever became of the training data.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_folders import make_folder, picture

from cifarctl import weights
from cifarctl.data import Source, seen
from cifarctl.data.images import read_images
from cifarctl.data.seen import remark_on_seen
from cifarctl.errors import ChangedDataError
from cifarctl.training.learnt_from import remarks_on_model
from cifarctl.training.options import TrainOptions
from cifarctl.training.session import Finished, Started, train

from support import Cifarctl

CLASSES = ("cat", "dog")


def trained(data: Path, out: Path, **options: object) -> tuple[Path, tuple[str, ...]]:
    """The run's folder, and the remarks at its start."""
    asked: dict[str, Any] = {"kind": "classifier", "arch": "mlp", "device": "cpu", "tensorboard": False, **options}
    events = list(train(TrainOptions(data=str(data), overrides={"epochs": 1}, **asked), out))
    assert isinstance(events[-1], Finished)
    return out, next(event.remarks for event in events if isinstance(event, Started))


def said(described: dict[str, Any], data: Path | str) -> str | None:
    """The remark when a model of this description is measured on `data`."""
    return remark_on_seen(Source.trained_on(described, str(data), None), described, allow=False)


def save(path: Path, folder: Path, per_class: int, *, names: bool = True) -> Path:
    """The first images of each class of a folder as an .npz file."""
    files = [file for name in CLASSES for file in sorted((folder / name).iterdir())[:per_class]]
    images = np.stack([image for _, image in read_images(files)])  # type: ignore[misc]
    np.savez(path, images=images, labels=np.repeat([0, 1], per_class), **({"classes": CLASSES} if names else {}))  # type: ignore[arg-type]
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data", {"cat": 10, "dog": 10}, {"cat": 3, "dog": 3})


@pytest.fixture
def described(data: Path) -> dict[str, Any]:
    """What a model says that was trained on `data`."""
    return Source(str(data)).describe()


class TestMeasuring:
    def test_training_images_of_data_that_has_changed_are_counted(self, data: Path, described: dict[str, Any]) -> None:
        picture(data / "train" / "cat" / "new.png")
        others = make_folder(data.parent / "others", {"cat": 2, "dog": 2}, {}) / "train"
        text = "has changed (train has 21 images, not 20) since the model was trained on it. Of the"
        remark = f"{data / 'train'}: {data} {text} 21 images, 21 are among the images that are there now: if it was"
        assert (said(described, data / "train") or "").startswith(remark)
        picture(others / "cat" / "other.png", 77)
        for name in ("cat/000.png", "cat/001.png", "dog/000.png", "dog/001.png"):
            picture(others / name, 77)
        assert (
            said(described, others) == f"{others}: {data} {text} 5 images, none is among the images that are there now"
        )

    def test_pixels_are_compared_with_image_files(
        self, data: Path, described: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = save(data.parent / "whole.npz", data / "train", 10)
        with pytest.raises(ChangedDataError, match="the model was trained with these images, so they are no test"):
            said(described, whole)
        shutil.copytree(data / "train", data.parent / "more")
        for name in CLASSES:
            picture(data.parent / "more" / name / "000.png", 77)
        more = save(data.parent / "more.npz", data.parent / "more", 10)
        assert "18 of 20 images are copies of those that the model was trained with" in (said(described, more) or "")
        assert said(described, save(data.parent / "test.npz", data / "test", 3)) is None
        monkeypatch.setattr(seen, "_MOST_DECODED", 15)
        assert "at least 1" in (said(described, more) or "")
        assert "(compared with 15 of the 20 training images)" in (said(described, more) or "")
        assert (said(described, data.parent / "test.npz") or "").endswith(
            "compared with 15 of the 20 images that the model was trained with: none is the same"
        )

    def test_training_data_that_is_gone_is_said(self, cifarctl: Cifarctl, data: Path) -> None:
        half, rest = (
            save(data.parent / "half.npz", data / "train", 9),
            save(data.parent / "all.npz", data / "train", 10),
        )
        run, _ = trained(half, data.parent / "run")
        described = weights.read_info(run / "model.safetensors").data
        assert "17 of 20 images are copies" in (said(described, rest) or "")
        half.rename(data.parent / "moved.npz")
        done = cifarctl("evaluate", "-m", run, "--data", rest)
        assert done.code == 0
        unknown = "it could not be checked whether the model was trained with any of the 20 images"
        assert f"{rest}: {unknown}: {half}: no such file\n" in done.err

    def test_links_and_relative_paths_lead_to_the_same_data(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = data / "train"  # without splits
        described = Source(str(data)).describe()
        picture(data / "cat" / "new.png")
        link = data.parent.parent / "link"
        link.symlink_to(data)
        (link.parent / "elsewhere").mkdir()
        monkeypatch.chdir(link.parent / "elsewhere")
        for name in (str(link), "../link", "../data/train", str(data.parent / "test" / ".." / "train")):
            source = Source.trained_on(described, name, None)
            with pytest.raises(ChangedDataError, match=r"all has 21 images, not 20\. So test would hold other images"):
                source.check_unchanged(described, "test")
        assert Source("../data/train").describe()["name"] == str(data.resolve())
        # A link may lead to a new place of the data later, so it is noted as it is.
        assert Source(str(link)).describe()["name"] == str(link)

    def test_new_test_images_of_the_models_own_data_are_compared(self, data: Path, described: dict[str, Any]) -> None:
        assert said(described, data) is None
        for name in ("000.png", "001.png"):
            shutil.copy(data / "train" / "cat" / name, data / "test" / "cat" / f"new{name}")
        remark = "2 of 8 images are copies of those that the model was trained with, so the metrics are too good"
        assert said(described, data) == f"{data}: {remark}"

    def test_archives_are_not_compared_with_one_another(self, tmp_path: Path) -> None:
        described = {"name": "cifar10", "val_size": 2000, "seed": 0, "archive_sha256": "0"}
        source = Source.trained_on(described, "cifar100", tmp_path)  # which has neither
        assert remark_on_seen(source, described, allow=False) is None


class TestTrainingFromAModel:
    """`init` and `teacher`: the validation and test images are to be new to the model too."""

    def remarks(self, described: dict[str, Any], data: Path, classes: tuple[str, ...] = CLASSES) -> str:
        info = weights.ModelInfo("classifier", "mlp", {}, classes, described)
        source = Source(str(data))
        held_out = {split: source.load(split) for split in ("val", "test")}
        return "; ".join(remarks_on_model("old", info, source.describe(), held_out, None))

    def test_images_that_it_was_trained_on_are_no_new_validation(self, data: Path) -> None:
        first, _ = trained(data, data.parent / "first")
        for option in ("init", "teacher"):
            _, remarks = trained(data, data.parent / option, seed=1, **{option: str(first)})
            expected = f"{first} was trained on some of the images that are now held out for validation"
            assert len([each for each in remarks if each.startswith(expected)]) == 1

    def test_changed_and_missing_training_data_is_said(self, data: Path, described: dict[str, Any]) -> None:
        assert self.remarks(described, data) == ""
        again, link = data.parent / "again", data.parent / "link"
        shutil.copytree(data / "train", again / "test")
        shutil.copytree(data / "test", again / "train")
        expected = "old was trained on 18 of the 20 test images, so the test metrics are too good"
        assert self.remarks(described, again) == expected
        picture(data / "train" / "cat" / "new.png")
        assert "Of the 20 test images, 20 are among the images that are there now" in self.remarks(described, again)
        link.symlink_to(data)
        assert self.remarks(described, link).startswith(f"{link}: the data has changed since old was trained, so some")
        shutil.rmtree(data)
        unknown = f"it could not be checked whether old was trained with any of the images held out here: {data}"
        assert self.remarks(described, again).startswith(unknown)

    def test_of_data_without_splits_test_images_may_be_known_too(self, data: Path) -> None:
        described = Source(str(data / "train")).describe()
        picture(data / "train" / "cat" / "new.png")
        assert "so some validation and test images may be among" in self.remarks(described, data / "train")

    def test_numbers_of_classes_of_other_data_are_said_to_be_taken_in_order(self, data: Path) -> None:
        first, other = (
            save(data.parent / f"{folder.name}.npz", folder, 3, names=False)
            for folder in (data / "train", data / "test")
        )
        described, numbers = Source(str(first)).describe(), ("0", "1")
        expected = f"the classes of old have numbers, no names, as those of {other}: class 0 is taken for class 0, and "
        assert self.remarks(described, other, numbers).startswith(expected)
        assert self.remarks(described, first, numbers) == ""
