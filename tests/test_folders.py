"""A folder of images as a data set: it is checked before work is spent, and is what its owner thinks it is."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cifarctl import models
from cifarctl.data import Dataset, Source, folder
from cifarctl.data.images import read_images
from cifarctl.data.splits import stratified_split
from cifarctl.errors import DataError, UsageError
from cifarctl.evaluation import evaluate_classifier, require_classes
from cifarctl.training.objectives import Classification, balanced_weights
from cifarctl.training.recipes import Recipe

from support import Cifarctl

TRAIN = ("train-clf", "--arch", "mlp", "--epochs", 1, "--no-tensorboard")


def picture(path: Path, number: int = 0) -> None:
    """A small file whose pixels tell its name and number from others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.random.default_rng([number, *path.name.encode()]).integers(0, 256, 3, np.uint8)
    Image.fromarray(np.broadcast_to(colour, (8, 8, 3)).copy()).save(path)


def make_folder(root: Path, train: dict[str, int], test: dict[str, int]) -> Path:
    """root/{train,test}/CLASS/N.png, so many of each class, all different."""
    for first, split, classes in ((0, "train", train), (1000, "test", test)):
        for label, (name, count) in enumerate(classes.items()):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(root / split / name / f"{i:03d}.png", first + label)
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder that has nothing wrong with it."""
    return make_folder(tmp_path / "data", {"cat": 10, "dog": 10}, {"cat": 3, "dog": 3})


class TestBeforeTheFirstStep:
    def spoil(self, data: Path, how: str) -> None:
        match how:
            case "damaged":
                (data / "test" / "dog" / "001.png").write_bytes(b"no image")
            case "other classes":
                picture(data / "test" / "Cat" / "0.png")
            case "file":
                shutil.rmtree(data / "test")
                (data / "test").write_text("")

    @pytest.mark.parametrize(
        ("how", "error", "hint"),
        [
            ("damaged", "test/dog/001.png: not an image in a known format", "remove or replace"),
            ("other classes", "test: not among the classes in {data}/train: 'Cat'", "did you mean cat?"),
            ("file", "test: not a folder", "expected DIR/{train,test}/CLASS"),
        ],
    )
    def test_the_test_split_is_checked(
        self, cifarctl: Cifarctl, data: Path, tmp_path: Path, how: str, error: str, hint: str
    ) -> None:
        self.spoil(data, how)
        done = cifarctl(*TRAIN, "--data", data, "--out", tmp_path / "run")
        assert done.code == 1
        assert f"error: {data}/{error.replace('{data}', str(data))}" in done.error
        assert f"hint: {hint}" in done.err
        assert "epoch" not in done.err
        assert not (tmp_path / "run").exists()

    def test_a_misspelt_training_split_is_guessed(self, data: Path) -> None:
        (data / "train").rename(data / "Trainig")
        with pytest.raises(DataError, match="train: no such folder") as caught:
            Source(str(data)).check()
        assert str(caught.value.hint).startswith("did you mean Trainig?")

    def test_images_are_decoded_once_and_what_is_not_used_is_said(
        self, cifarctl: Cifarctl, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        picture(data / "holdout" / "cat" / "0.png")
        picture(data / "train" / "0.png")
        (data / "train" / "cat" / "notes.txt").touch()
        (data / "test" / "dog" / "list.csv").touch()
        decoded: Counter[Path] = Counter()

        def counted(paths: Iterator[Path]) -> Iterator[object]:
            for path, image in read_images(paths):
                decoded[path] += 1
                yield path, image

        monkeypatch.setattr(folder, "read_images", counted)
        done = cifarctl(*TRAIN, "--data", data, "--out", tmp_path / "run")
        assert done.code == 0
        assert len(decoded) == 26
        assert set(decoded.values()) == {1}
        said = done.err[: done.err.index("Training mlp")].splitlines()
        assert said == [
            f"{data}: 26 images of 2 classes (cat 13, dog 13): 18 for training, 2 for validation (drawn), 6 for test",
            f"{data}/train: 1 other file ignored: .txt, for example cat/notes.txt",
            f"{data}/train: 1 file outside the classes' folders ignored, for example 0.png",
            f"{data}/test: 1 other file ignored: .csv, for example dog/list.csv",
            f"{data}: holdout is not used: train and test are, and validation images are drawn from train",
        ]


class TestWhatIsSkipped:
    def test_hidden_things_are_no_images_and_no_classes(self, data: Path) -> None:
        expected = Source(str(data)).load("train")
        for hidden in (".ipynb_checkpoints/000-checkpoint.png", "__MACOSX/._000.png", "@eaDir/000.png"):
            picture(data / "train" / hidden)
            picture(data / "train" / "cat" / hidden)
        (data / "train" / "dog" / "._000.png").write_bytes(b"\0\5\x16\7")
        (data / ".git").mkdir()
        source = Source(str(data))
        assert source.check() == ()
        found = source.load("train")
        assert found.classes == ("cat", "dog")
        assert torch.equal(found.images, expected.images)

    @pytest.mark.needs("POSIX")
    @pytest.mark.parametrize("locked", ["train/cat/deep", "train/cat", "train", "."])
    def test_a_folder_that_cannot_be_read_is_an_error(self, locked: str) -> None:
        with tempfile.TemporaryDirectory() as name:  # pytest's are root's alone
            root = Path(name)
            root.chmod(0o755)
            make_folder(root / "data", {"cat": 3, "dog": 3}, {"cat": 1, "dog": 1})
            picture(root / "data" / "train" / "cat" / "deep" / "0.png")
            folder = root / "data" / locked
            folder.chmod(0o000)
            was_root = os.getuid() == 0
            if was_root:
                os.seteuid(65534)
            try:
                with pytest.raises(DataError, match=r"cannot be read.*Permission denied") as caught:
                    Source(str(root / "data")).load("train")
            finally:
                if was_root:
                    os.seteuid(0)
                folder.chmod(0o755)
            assert str(folder) in str(caught.value)


class TestClasses:
    @pytest.mark.parametrize("files", [(), ("a.txt", "b.txt")])
    def test_a_class_without_images_is_not_trained(self, data: Path, files: tuple[str, ...]) -> None:
        (data / "train" / "bird").mkdir()
        for name in files:
            (data / "train" / "bird" / name).touch()
        with pytest.raises(DataError) as caught:
            Source(str(data)).load("train")
        also = " (2 other files ignored: .txt)" if files else ""
        assert str(caught.value) == f"{data / 'train' / 'bird'}: no images in it{also}"

    def test_classes_that_the_test_images_lack_are_said_and_left_out_of_the_means(
        self, cifarctl: Cifarctl, tmp_path: Path
    ) -> None:
        data = make_folder(tmp_path / "data", {"bird": 6, "cat": 6, "dog": 6}, {"bird": 4, "cat": 0, "dog": 2})
        trained = cifarctl(*TRAIN, "--data", data, "--out", tmp_path / "run")
        assert trained.code == 0
        assert f"{data}/test: no images of cat" in trained.err
        result = cifarctl("evaluate", "-m", tmp_path / "run", "--json").json
        bird, cat, dog = result["per_class"]
        assert cat == {"label": "cat", "precision": None, "recall": None, "f1": None, "support": 0}
        assert result["metrics"]["macro_f1"] == pytest.approx((bird["f1"] + dog["f1"]) / 2)
        assert result["metrics"]["balanced_accuracy"] == pytest.approx((bird["recall"] + dog["recall"]) / 2)
        shown = cifarctl("evaluate", "-m", tmp_path / "run", "--report", tmp_path / "report.html").out
        (row,) = [line.split() for line in shown.splitlines() if line.startswith(" cat") and "–" in line]
        assert row == ["cat", "–", "–", "–", "0"]
        assert "balanced accuracy" in shown
        page = (tmp_path / "report.html").read_text()
        assert '<td data-value="-1">–</td>' in page
        assert "<dt>balanced accuracy</dt>" in page

    def test_a_perfect_model_has_a_macro_f1_of_1_whatever_classes_are_absent(self) -> None:
        images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
        model = models.build("mlp", classes=4, hidden=[8]).eval()
        always = model(images).argmax(1)
        report = evaluate_classifier(model, Dataset(images, always, ("a", "b", "c", "d")))  # type: ignore[arg-type]
        assert {report.metrics[name] for name in ("accuracy", "balanced_accuracy", "macro_f1")} == {1.0}

    def test_a_mismatch_names_the_classes_that_differ(self) -> None:
        known = tuple(f"class {i}" for i in range(20))
        with pytest.raises(DataError, match=r"only the model: class 17; only the data: class xvii\)"):
            require_classes(known, (*known[:17], "class 18", "class 19", "class xvii"), "the model")
        with pytest.raises(DataError, match="the same names in another order"):
            require_classes(known, known[::-1], "the model")


class TestClassWeights:
    labels = torch.tensor([0] * 12 + [1] * 3 + [3] * 3)
    weights = (0.5, 2.0, None, 2.0)  # of 18 images in three classes

    def data(self) -> Dataset:
        return Dataset(torch.zeros(18, 3, 32, 32, dtype=torch.uint8), self.labels, ("a", "b", "c", "d"))

    def test_balanced_ones_let_all_classes_count_the_same(self) -> None:
        found = balanced_weights(self.data())
        assert [found[i].item() for i in (0, 1, 3)] == [self.weights[i] for i in (0, 1, 3)]
        assert found[self.labels].mean() == 1
        sums = torch.bincount(self.labels, found[self.labels])
        assert sums.tolist() == [6, 6, 0, 6]

    def test_the_training_loss_is_weighted_image_by_image_and_the_validation_loss_is_not(self) -> None:
        torch.manual_seed(0)
        recipe = Recipe(1, 8, "adamw", 1e-3, 0.0, label_smoothing=0.1)
        model = models.build("mlp", classes=4, hidden=[8]).eval()
        plain = Classification(model, recipe, 0)  # type: ignore[arg-type]
        weighted = Classification(model, recipe, 0, balanced_weights(self.data()))  # type: ignore[arg-type]
        logits = torch.randn(18, 4)
        assert plain.cross_entropy(logits, self.labels) == F.cross_entropy(logits, self.labels, label_smoothing=0.1)
        by_hand = [
            self.weights[label] * F.cross_entropy(row[None], label[None], label_smoothing=0.1)  # type: ignore[operator]
            for row, label in zip(logits, self.labels, strict=True)
        ]
        assert weighted.cross_entropy(logits, self.labels).item() == pytest.approx(sum(by_hand).item() / 18)  # type: ignore[union-attr]
        assert plain.validate(self.data(), "fp32") == weighted.validate(self.data(), "fp32")

    def test_the_option_is_stored_and_changes_what_is_learnt(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        data = make_folder(tmp_path / "data", {"cat": 16, "dog": 4}, {"cat": 2, "dog": 2})
        losses = {}
        for value in ("none", "balanced"):
            done = cifarctl(*TRAIN, "--data", data, "--class-weights", value, "--out", tmp_path / value)
            assert done.code == 0
            assert f'"class_weights": "{value}"' in (tmp_path / value / "config.json").read_text()
            losses[value] = (tmp_path / value / "metrics.jsonl").read_text().split("train_loss")[1].split(",")[0]
        assert losses["none"] != losses["balanced"]


class TestFewImages:
    @pytest.mark.parametrize("counts", [(2, 1), (2, 2), (1, 1, 2), (3, 1), (3, 3), (9, 1), (40, 1, 1)])
    def test_each_class_keeps_an_image_to_train_on(self, tmp_path: Path, counts: tuple[int, ...]) -> None:
        classes = {f"class{i}": count for i, count in enumerate(counts)}
        source = Source(str(make_folder(tmp_path / "data", classes, dict.fromkeys(classes, 1))))
        train, val = source.load("train"), source.load("val")
        assert set(train.labels.tolist()) == set(range(len(counts)))
        assert len(val) == max(1, sum(counts) // 10)
        assert len(train) + len(val) == sum(counts)

    def test_many_classes_of_few_images_hold_out_what_they_can(self, tmp_path: Path) -> None:
        classes = {f"class{i:02d}": 1 + (i == 7) for i in range(40)}
        source = Source(str(make_folder(tmp_path / "data", classes, {"class00": 1})))
        assert source.load("val").labels.tolist() == [7]

    def test_one_image_a_class_is_too_few_and_no_option_is_blamed(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        data = make_folder(tmp_path / "data", {"cat": 1, "dog": 1}, {"cat": 1, "dog": 1})
        done = cifarctl(*TRAIN, "--data", data, "--out", tmp_path / "run")
        assert done.code == 1
        assert "2 training images of as many classes leave none for validation" in done.error
        assert "--val-size" not in done.err

    def test_a_validation_size_that_leaves_a_class_none_is_wrong_usage(self) -> None:
        labels = torch.tensor([0, 0, 0, 1, 1, 1])
        assert [len(part) for part in stratified_split(labels, 4, 0)] == [2, 4]
        with pytest.raises(UsageError, match=r"^`val_size` 5: of 6 training images, .* 1 to 4"):
            stratified_split(labels, 5, 0)

    def test_two_images_a_class_are_enough(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        data = make_folder(tmp_path / "data", {"cat": 2, "dog": 2}, {"cat": 1, "dog": 1})
        done = cifarctl(*TRAIN, "--data", data, "--out", tmp_path / "run", "--json")
        assert done.code == 0, done.err
        assert done.json["data"]["val_size"] == 1
