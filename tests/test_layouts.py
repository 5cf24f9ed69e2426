"""Pictures as people have them: each layout gives the same data set, and what has no sure meaning is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_folders import make_folder, picture

import cifarctl as library
from cifarctl import weights
from cifarctl.data import Source
from cifarctl.data.images import read_images
from cifarctl.errors import DataError
from cifarctl.training.options import TrainOptions
from cifarctl.training.session import Finished, train

from support import Cifarctl, MadeOnce

CLASSES = ("cat", "dog", "horse")
TRAIN = ("train-clf", "--arch", "mlp", "--epochs", 1, "--no-tensorboard")
WITHOUT_SPLITS = ("classes", "list.csv", "images.npz", "images.npy")
TRAIN_ALONE = ("train alone", "kaggle", "train.csv", "train.npz", "x_train.npz")


@pytest.fixture(scope="module")
def pictures(made_once: MadeOnce) -> Path:
    """Sixty pictures of three classes in every layout. No test may change them."""

    def make(root: Path) -> None:
        files = []
        for label, name in enumerate(CLASSES):
            for i in range(20):
                files.append(root / "classes" / name / f"{name}{i:03d}.png")
                picture(files[-1], 100 * label + i)
        pixels = np.stack([image for _, image in read_images(files)])  # type: ignore[misc]
        labels = np.repeat(np.arange(3), 20)
        names = np.array(CLASSES)
        nhwc = pixels.transpose(0, 2, 3, 1)
        mixed = np.arange(60).reshape(3, 20).T.flatten()  # the classes in turn
        np.savez(root / "images.npz", images=nhwc[mixed], labels=labels[mixed], classes=names)
        np.save(root / "images.npy", pixels)
        np.save(root / "labels.npy", labels)
        np.save(root / "classes.npy", names)
        np.savez(root / "train.npz", train_images=pixels, train_labels=labels[:, None], class_names=names)
        np.savez(root / "x_train.npz", x_train=nhwc, y_train=labels, classes=names)
        shutil.copytree(root / "classes", root / "train alone" / "Training")
        flat = root / "kaggle" / "train"
        flat.mkdir(parents=True)
        backwards = files[::-1]
        for file in files:
            shutil.copy(file, flat)
        picture(root / "kaggle" / "test" / "1.png")
        rows = [f"{file.stem},{file.parent.name}" for file in backwards]
        (root / "kaggle" / "trainLabels.csv").write_text("\n".join(["id,label", *rows]), encoding="utf-8")
        rows = [f"{file.relative_to(root).as_posix()},{file.parent.name}" for file in backwards]
        (root / "list.csv").write_text("\r\n".join(["path,label", *rows, ""]), encoding="utf-8-sig")
        rows = [f"{row},train" for row in rows]
        (root / "train.csv").write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")

    return made_once("layouts", make)


def trained(data: Path, out: Path, **options: object) -> Path:
    asked = TrainOptions(
        **{  # type: ignore[arg-type]
            "kind": "classifier",
            "arch": "mlp",
            "data": str(data),
            "precision": "fp32",
            "tensorboard": False,
            "overrides": {"epochs": 1},
            **options,
        }
    )
    assert isinstance(list(train(asked, out))[-1], Finished)
    return out


class TestTheSamePictures:
    @pytest.mark.parametrize("names", [WITHOUT_SPLITS, TRAIN_ALONE], ids=["without splits", "train alone"])
    def test_are_the_same_data_set_in_every_layout(self, pictures: Path, names: tuple[str, ...]) -> None:
        first, *others = (Source(str(pictures / name)) for name in names)
        splits = [split for split in ("train", "val", "test") if first.has(split)]
        assert splits == (["train", "val", "test"] if names == WITHOUT_SPLITS else ["train", "val"])
        for other in others:
            assert other.check()[:-1] == first.check()[:-1] or other.name.endswith("kaggle")
            assert replace(other.contents(), name="") == replace(first.contents(), name="")
            for split in splits:
                one, two = (source.load(split) for source in (first, other))  # type: ignore[arg-type]
                assert two.classes == one.classes == CLASSES
                assert torch.equal(one.images, two.images)
                assert torch.equal(one.labels, two.labels)

    def test_lead_to_the_same_model_and_accuracy(self, cifarctl: Cifarctl, pictures: Path, tmp_path: Path) -> None:
        metrics = []
        for name in ("classes", "list.csv", "images.npz"):
            done = cifarctl(*TRAIN, "--data", pictures / name, "--out", tmp_path / name, "--device", "cpu", "--json")
            assert done.code == 0, done.err
            counts = "60 images of 3 classes (cat 20, dog 20, horse 20)"
            splits = "49 for training, 5 for validation (drawn), 6 for test (drawn)"
            assert done.err.splitlines()[0] == f"{pictures / name}: {counts}: {splits}"
            metrics.append(done.json["test"])
        assert metrics[0]["n"] == 6
        assert metrics[0] == metrics[1] == metrics[2]

    def test_a_list_is_told_from_another_by_its_labels(self, pictures: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(pictures, tmp_path / "copy")
        before = Source(str(pictures / "list.csv")).describe()
        assert Source(str(copy / "list.csv")).changes(before, "test") == []
        path = copy / "list.csv"
        path.write_bytes(path.read_bytes().replace(b"cat000.png,cat", b"cat000.png,dog"))
        changes = Source(str(path)).changes(before, "test")
        assert changes == ["of the 60 images in all, some have other names or sizes, or another order"]


class TestHeldOut:
    def test_every_seed_and_limit_tests_the_same_images(self, pictures: Path) -> None:
        sources = [Source(str(pictures / "classes"), seed=seed, limit=limit) for seed, limit in ((0, None), (1, 9))]
        paths = [{split: source.load(split).paths or () for split in ("train", "val", "test")} for source in sources]
        assert paths[0]["test"] == paths[1]["test"]
        assert paths[0]["val"] != paths[1]["val"]
        for each in paths:
            assert len({*each["train"], *each["val"], *each["test"]}) == sum(map(len, each.values()))
        assert [len(paths[1][split]) for split in ("train", "val", "test")] == [9, 5, 6]
        assert sources[0].load("test").labels.bincount().tolist() == [2, 2, 2]

    def test_a_model_is_tested_on_what_its_training_held_out(
        self, cifarctl: Cifarctl, pictures: Path, tmp_path: Path
    ) -> None:
        data = shutil.copytree(pictures / "classes", tmp_path / "data")
        run = trained(data, tmp_path / "run", seed=3)
        moved = shutil.copytree(data, tmp_path / "moved")
        for place in (data, moved):
            done = cifarctl("evaluate", "-m", run, "--data", place, "--json")
            assert (done.code, done.json["n"], done.err) == (0, 6, "")
        info = weights.read_info(run / "model.safetensors")
        source = Source.trained_on(info.data, str(moved), None)
        held_out = {Path(path).name for path in source.load("test").paths or ()}
        assert held_out == {Path(path).name for path in Source(str(data), seed=3).load("test").paths or ()}
        picture(data / "cat" / "new.png")
        refused = cifarctl("evaluate", "-m", run)
        assert refused.code == 1
        assert "all has 61 images, not 60. So test would hold other images than it did then" in refused.error

    def test_training_images_are_no_test_of_their_model(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        data = make_folder(tmp_path / "data", {"cat": 10, "dog": 10}, {"cat": 3, "dog": 3})
        run = trained(data, tmp_path / "run")
        refused = cifarctl("evaluate", "-m", run, "--data", data / "train")
        assert refused.code == 1
        assert "the model was trained with these images, so they are no test" in refused.error
        assert cifarctl("evaluate", "-m", run, "--data", data / "train", "--allow-changed-data").code == 0
        assert cifarctl("evaluate", "-m", run, "--data", data / "test").code == 0

    def test_too_few_images_to_hold_out_any(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            picture(tmp_path / name / "1.png")
        with pytest.raises(DataError, match="2 images of 2 classes: too few to hold out any"):
            Source(str(tmp_path)).check()


class TestValidation:
    @pytest.mark.parametrize("name", ["val", "valid", "Validation"])
    def test_a_folder_for_it_is_used_and_nothing_is_drawn(self, tmp_path: Path, name: str) -> None:
        data = make_folder(tmp_path / "data", {"cat": 10, "dog": 10}, {"cat": 3, "dog": 3})
        for each in ("cat", "dog"):
            picture(data / name / each / "0.png")
        source = Source(str(data))
        assert source.check() == ()
        assert [len(source.load(split)) for split in ("train", "val", "test")] == [20, 2, 6]
        assert {Path(path).parts[-3] for path in source.load("val").paths or ()} == {name}
        assert source.contents().drawn == ()
        assert source.describe()["files"]["val"]["count"] == 2

    def test_two_folders_for_one_split_are_refused(self, tmp_path: Path) -> None:
        data = make_folder(tmp_path / "data", {"cat": 3, "dog": 3}, {"cat": 1, "dog": 1})
        for each in ("val", "valid"):
            picture(data / each / "cat" / "0.png")
        with pytest.raises(DataError, match="val and valid: two folders of the same split"):
            Source(str(data)).check()

    def test_a_class_that_train_lacks_is_named(self, tmp_path: Path) -> None:
        data = make_folder(tmp_path / "data", {"cat": 3, "dog": 3}, {"cat": 1, "dog": 1})
        picture(data / "val" / "bird" / "0.png")
        with pytest.raises(DataError, match=r"val: not among the classes in .*train: 'bird'"):
            Source(str(data)).check()

    def test_a_model_whose_training_drew_it_from_train_still_does(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        data = make_folder(tmp_path / "data", {"cat": 10, "dog": 10}, {"cat": 3, "dog": 3})
        drawn = Source(str(data)).load("val").paths
        run = trained(data, tmp_path / "run")
        for i in range(5):
            picture(data / "val" / "cat" / f"{i}.png")
        info = weights.read_info(run / "model.safetensors")
        assert Source.trained_on(info.data, None, None).load("val").paths == drawn
        done = cifarctl("evaluate", "-m", run, "--split", "val", "--json")
        assert (done.code, done.json["n"], done.json["data_changes"]) == (0, 2, [])
        described = {**info.data, "files": {**info.data["files"], "val": {"count": 5, "sha256": ""}}}
        path = run / "model.safetensors"
        weights.save(path, load_file(path), replace(info, data=described))
        shutil.rmtree(data / "val")
        gone = cifarctl("evaluate", "-m", run, "--split", "val")
        assert (gone.code, "val was a split of its own, and now it is taken from" in gone.error) == (1, True)


class TestWithoutTestImages:
    def test_training_says_so_first_and_ends_with_validation_figures(
        self, cifarctl: Cifarctl, pictures: Path, tmp_path: Path
    ) -> None:
        data, run = pictures / "kaggle", tmp_path / "run"
        done = cifarctl(*TRAIN, "--data", data, "--out", run)
        assert done.code == 0
        assert done.err[: done.err.index("Training mlp")].splitlines()[1:] == [
            f"{data / 'test'}: 1 image without labels ignored, for example 1.png",
            f"{data}: no test split, so the validation images are measured at the end of training",
        ]
        assert "Measuring on the val split" in done.err
        assert f"6 val images of {data}" in done.out
        assert "test images" not in done.out
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["test"], summary["val"]["n"]) == (None, 6)
        none = cifarctl("evaluate", "-m", run)
        assert (none.code, "test: its images have no labels" in none.error) == (1, True)
        assert cifarctl("evaluate", "-m", run, "--split", "val", "--json").json["n"] == 6
        again = cifarctl(*TRAIN, "--data", data, "--out", run, "--overwrite", "--quiet")
        assert again.code == 0


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the three classes."""
    return trained(pictures / "images.npz", tmp_path_factory.mktemp("alone") / "run")


class TestMeasuredAlone:
    def accuracies(self, cifarctl: Cifarctl, run: Path, *paths: Path) -> list[tuple[int, float]]:
        done = [cifarctl("evaluate", "-m", run, "--data", path, "--json") for path in paths]
        assert [each.code for each in done] == [0] * len(done), [each.err for each in done]
        return [(each.json["n"], each.json["metrics"]["accuracy"]) for each in done]

    def test_classes_are_matched_by_name(self, cifarctl: Cifarctl, run: Path, tmp_path: Path) -> None:
        files = [tmp_path / "classes" / name / f"{i}.png" for name in ("horse", "cat") for i in range(4)]
        for i, file in enumerate(files):
            picture(file, 1000 + i)
        shutil.copytree(tmp_path / "classes", tmp_path / "split" / "test")
        (tmp_path / "list.csv").write_text(
            "file;class\n" + "".join(f"{file.relative_to(tmp_path)};{file.parent.name}\n" for file in files)
        )
        pixels = np.stack([image for _, image in read_images(files)])  # type: ignore[misc]
        np.savez(tmp_path / "named.npz", x=pixels, y=np.arange(8) // 4, classes=np.array(["horse", "cat"]))
        np.savez(tmp_path / "unnamed.npz", data=pixels, labels=np.where(np.arange(8) < 4, 2, 0).astype(np.int32))
        places = [tmp_path / name for name in ("classes", "split", "list.csv", "named.npz", "unnamed.npz")]
        found = self.accuracies(cifarctl, run, *places)
        assert found[0][0] == 8
        assert len(set(found)) == 1
        said = cifarctl("evaluate", "-m", run, "--data", tmp_path / "classes").err.splitlines()
        assert said == [
            f"{tmp_path / 'classes'}: 8 images of 2 classes (cat 4, horse 4): all are measured, since they are in no "
            "splits",
            f"{tmp_path / 'classes'}: no images of dog",
        ]
        remark = "its labels have no names, so label 0 is taken as cat, and so on"
        assert f"unnamed.npz: {remark}" in cifarctl("evaluate", "-m", run, "--data", tmp_path / "unnamed.npz").err
        report = library.evaluate(library.load_classifier(run), data=tmp_path / "split")
        assert report.metrics["accuracy"] == found[0][1]

    def test_a_class_that_the_model_lacks_is_named(self, cifarctl: Cifarctl, run: Path, tmp_path: Path) -> None:
        picture(tmp_path / "classes" / "hores" / "1.png")
        picture(tmp_path / "classes" / "cat" / "1.png")
        (tmp_path / "list.csv").write_text("path,label\nclasses/cat/1.png,cat\nclasses/hores/1.png,hores\n")
        for name, where in (("classes", "classes"), ("list.csv", "list.csv, line 3")):
            refused = cifarctl("evaluate", "-m", run, "--data", tmp_path / name)
            assert refused.code == 1
            assert f"{tmp_path / where}: not among the model's classes: hores" in refused.error
            assert "hint: did you mean horse?" in refused.err

    def test_severities_of_cifar_10_c_share_their_labels(self, cifarctl: Cifarctl, run: Path, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (15, 32, 32, 3), np.uint8)
        np.save(tmp_path / "gaussian_noise.npy", images)
        np.save(tmp_path / "labels.npy", np.tile(np.arange(3), 5))
        np.save(tmp_path / "cifar10.1_v6_data.npy", images)
        np.save(tmp_path / "cifar10.1_v6_labels.npy", np.tile(np.arange(3), 5).astype(np.int32))
        files = [tmp_path / name for name in ("gaussian_noise.npy", "cifar10.1_v6_data.npy")]
        found = self.accuracies(cifarctl, run, *files)
        assert found[0][0] == 15
        assert found[0] == found[1]


def test_a_program_asks_what_is_there(pictures: Path) -> None:
    found = library.inspect_data(pictures / "kaggle", val_size=9)
    assert (found.classes, found.counts) == (CLASSES, {"train": (17, 17, 17), "val": (3, 3, 3)})
    assert (found.drawn, len(found.remarks)) == (("val",), 2)
    assert library.inspect_data("synthetic").counts["test"] == (100,) * 10


Spoil = Callable[[Path], Path]


def one_class(root: Path) -> Path:
    for i in range(5):
        picture(root / "only" / f"{i}.png")
    return root


def unreadable(root: Path) -> Path:
    for name in ("a", "b"):
        for i in range(5):
            picture(root / name / f"{i}.png")
    (root / "b" / "3.png").write_text("no image")
    return root


def a_list(*lines: str) -> Spoil:
    def make(root: Path) -> Path:
        for name in ("1.png", "2.png"):
            picture(root / name)
        (root / "list.csv").write_text("\n".join(lines), encoding="utf-8")
        return root / "list.csv"

    return make


def an_npz(**arrays: object) -> Spoil:
    def make(root: Path) -> Path:
        np.savez(root / "x.npz", **arrays)  # type: ignore[arg-type]
        return root / "x.npz"

    return make


PIXELS = np.zeros((4, 32, 32, 3), np.uint8)
LABELS = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (one_class, ": 1 class, at least 2 are needed"),
        (unreadable, "/b/3.png: not an image in a known format"),
        (a_list("path,label", "1.png,a", "3.png,b", "4.png,b"), "list.csv, line 3: {root}/3.png: no such file (and 1 "),
        (a_list("path,label,split", "1.png,cat,train", "2.png,cats,val"), "list.csv, line 3: 'cats' is no class of"),
        (a_list("path,label", "1.png,a", "2.png,"), "list.csv, line 3: no label"),
        (a_list("path,label", "1.png,a", "./1.png,b"), "list.csv, line 3: ./1.png is in line 2 too"),
        (a_list("path,label,split", "1.png,a,train", "1,a,test"), "list.csv, line 3: 1 is in line 2 too"),
        (a_list("path,label,split", "1.png,a,dev"), "list.csv, line 2: split 'dev' is not one of train, val, test"),
        (a_list("path,label", "1.png,a,b"), "list.csv, line 2: 3 columns, not 2"),
        (a_list("1.png,a", "2.png,b"), "list.csv, line 1: no column of paths in '1.png,a'"),
        (a_list("path,label"), "list.csv: no images in it"),
        (an_npz(images=PIXELS, labels=LABELS.astype(object)), "x.npz: labels: Python objects (a pickle), which are"),
        (an_npz(images=PIXELS / 255, labels=LABELS), "x.npz: images are float64, not uint8"),
        (an_npz(images=PIXELS[:, :28], labels=LABELS), "x.npz: all images: uint8 (4, 28, 32, 3), not (N, 3, 32, 32)"),
        (an_npz(images=PIXELS, labels=LABELS[:3]), "x.npz: all: 4 images and 3 labels"),
        (an_npz(images=PIXELS, labels=LABELS / 2), "x.npz: labels are float64 (4,), not integers"),
        (an_npz(images=PIXELS, labels=LABELS * 2), "x.npz: no images of '1' to train on"),
        (
            an_npz(images=PIXELS, x=PIXELS, labels=LABELS),
            "x.npz: which arrays are images and labels? It holds images, x",
        ),
        (an_npz(arr_0=PIXELS, arr_1=LABELS), "x.npz: which arrays are images and labels? It holds arr_0, arr_1"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_trained(
    cifarctl: Cifarctl, tmp_path: Path, make: Spoil, error: str
) -> None:
    (tmp_path / "data").mkdir()
    done = cifarctl(*TRAIN, "--data", make(tmp_path / "data"), "--out", tmp_path / "run")
    assert done.code == 1
    assert error.replace("{root}", str(tmp_path / "data")) in done.error
    assert [line.partition(":")[0] for line in done.err.splitlines()] in (["error"], ["error", "hint"])
    assert not (tmp_path / "run").exists()


class TestNoSureMeaning:
    @pytest.mark.parametrize(
        ("files", "error"),
        [
            (("images_train/cat/1.png", "images_test/cat/1.png"), "neither splits nor classes"),
            (("extracted/cat/1.png", "extracted/dog/1.png"), "neither splits nor classes"),
            (("car/1.png", "plane/1.png", "train/1.png"), "train: 0 classes, at least 2 are needed"),
            (("train/1.png", "train.csv", "labels.csv"), "train.csv, labels.csv: which has the labels of train?"),
            (("1.png", "labels.csv"), "has no folders of classes either"),
        ],
    )
    def test_is_refused(self, tmp_path: Path, files: tuple[str, ...], error: str) -> None:
        for name in files:
            picture(tmp_path / name) if name.endswith(".png") else (tmp_path / name).touch()
        with pytest.raises(DataError) as caught:
            Source(str(tmp_path)).check()
        assert error in str(caught.value)
        assert caught.value.hint


class TestNamesOfFiles:
    def test_each_image_keeps_its_file_through_splits_limits_and_subsets(self, tmp_path: Path) -> None:
        root = make_folder(tmp_path / "data", {"cat": 10, "dog": 10}, {"cat": 3, "dog": 3})
        source = Source(str(root), limit=7)
        every = {path.relative_to(root).as_posix() for path in root.rglob("*.png")}
        seen = set[str]()
        for split in ("train", "val", "test"):
            images = source.load(split)
            assert images.paths is not None
            assert len(images.paths) == len(images)
            names = [Path(path).relative_to(root).parts for path in images.paths]
            assert [images.classes[label] for label in images.labels] == [name[1] for name in names]
            assert {name[0] for name in names} == {"test" if split == "test" else "train"}
            seen |= {"/".join(name) for name in names}
        assert seen <= every
        assert len(seen) == 7 + 2 + 6

    def test_images_without_files_have_none(self) -> None:
        assert Source("synthetic").load("val").paths is None
