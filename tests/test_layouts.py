"""Pictures as people have them: each layout gives the same data set, and what has no sure meaning is refused."""

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_folders import make_folder, picture

import cifarctl as library
from cifarctl import weights
from cifarctl.data import Source
from cifarctl.data.class_names import hint_at_near
from cifarctl.data.images import read_images
from cifarctl.errors import DataError, UsageError
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
        assert "hint: --split val measures on the images that its training held out" in none.err
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
        shutil.copy(files[0], tmp_path / "classes" / "cat" / "horse.png")
        done = cifarctl("evaluate", "-m", run, "--data", tmp_path / "classes")
        assert "1 of 9 test images is a copy of one with another label" in done.err
        report = library.evaluate(library.load_classifier(run), data=tmp_path / "split")
        assert report.metrics["accuracy"] == found[0][1]

    def test_only_classes_that_have_images_are_counted(self, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), np.uint8)
        np.savez(tmp_path / "x.npz", images=images, labels=np.array([2, 5, 11] * 10))
        path = tmp_path / "x.npz"
        assert str(Source(str(path), only_measured=True).contents()) == (
            f"{path}: 30 images of 3 classes (2 10, 5 10, 11 10), none of 0, 1, 3, 4, 6, 7, 8, 9, … (9): all are "
            "measured, since they are in no splits"
        )

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


def a_zip(content: bytes) -> Spoil:
    def make(root: Path) -> Path:
        with zipfile.ZipFile(root / "x.npz", "w") as file:
            for name in ("images", "labels"):
                file.writestr(name, content)
        return root / "x.npz"

    return make


def an_npy(labels: np.ndarray | None) -> Spoil:
    def make(root: Path) -> Path:
        if labels is None:
            (root / "images.npy").write_text("no array")
        else:
            np.save(root / "images.npy", PIXELS)
            np.savez(root / "labels.npz", labels)
            (root / "labels.npz").rename(root / "labels.npy")
        return root / "images.npy"

    return make


def of_lying_header(root: Path) -> Path:
    with (root / "images.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**15, 32, 32, 3)}
        np.lib.format.write_array_header_1_0(file, header)
    np.save(root / "labels.npy", LABELS)
    return root / "images.npy"


def mixed_splits(root: Path) -> Path:
    for name in ("cat/train", "cat/test", "dog/train", "dog/test"):
        for i in range(4):
            picture(root / name / f"{i}.png")
    picture(root / "cat" / "1.png")
    return root


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
        (an_npz(images=PIXELS[..., :2], labels=LABELS), "x.npz: all images: uint8 (4, 32, 32, 2), not (N, 3, 32, 32)"),
        (an_npz(images=PIXELS[:, :3], labels=LABELS), "x.npz: all images: uint8 (4, 3, 32, 3), not (N, 3, 32, 32)"),
        (an_npz(images=PIXELS, labels=LABELS[:3]), "x.npz: all: 4 images and 3 labels"),
        (
            an_npz(images=PIXELS, labels=LABELS * 2**62),
            "x.npz: labels up to 4611686018427387904, but they count classes",
        ),
        (an_npz(images=PIXELS, labels=np.eye(2)[LABELS]), "x.npz: labels are float64 (4, 2), not integers (N,)"),
        (an_npz(images=PIXELS, labels=LABELS, classes=np.array(["", "a"])), "x.npz: a class has no name"),
        (a_zip(b"no array"), "x.npz: images: no array"),
        (an_npy(np.zeros(2)), "labels.npy: an .npz file; name it so"),
        (an_npy(None), "images.npy: neither an .npz nor an .npy file"),
        (of_lying_header, "images.npy: cannot be read ("),
        (a_list("path,label,label", "1.png,a,b"), "list.csv, line 1: two columns are named label"),
        (a_list("", "path,label", "1.png,a", "3.png,b"), "list.csv, line 4: {root}/3.png: no such file"),
        (a_list("path,label,split", "1.png,a,val", "2.png,b,test"), "list.csv: no image is for train"),
        (mixed_splits, "/cat: holds folders named as splits, so it is not known which images are for test"),
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


class TestCopies:
    """The same picture in training and in test: its metrics are too good, and that is said."""

    def said(self, cifarctl: Cifarctl, data: Path, out: Path) -> str:
        done = cifarctl(*TRAIN, "--data", data, "--out", out)
        assert done.code == 0, done.err
        return done.err

    def test_of_training_images_that_are_held_out_are_counted(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        data = make_folder(tmp_path / "data", {"cat": 10, "dog": 10}, {"cat": 3, "dog": 3})
        assert "cop" not in self.said(cifarctl, data, tmp_path / "clean")
        for each in ("000", "001"):
            shutil.copy(data / "train" / "cat" / f"{each}.png", data / "test" / "cat" / f"again{each}.png")
        shutil.copytree(data / "test", data / "val")
        said = self.said(cifarctl, data, tmp_path / "run")
        example = data / "val" / "cat" / "again000.png"
        assert (
            f"{data}: 2 of 8 validation images are copies of training images, for example {example}: the vali" in said
        )
        assert f"{data}: 2 of 8 test images are copies of training images" in said
        assert f"{data}: 6 of 8 test images are copies of validation images" in said

    def test_with_another_label_are_counted(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        data = make_folder(tmp_path / "data", {"cat": 10, "dog": 10}, {"cat": 3, "dog": 3})
        shutil.copytree(data / "train" / "cat", data / "train" / "lynx")
        shutil.copytree(data / "train" / "dog", data / "val" / "dog")
        assert f"{data}: 10 of 30 training images are copies of others with another label" in self.said(
            cifarctl, data, tmp_path / "run"
        )

    def test_of_what_the_model_was_trained_on_are_counted_wherever_they_lie(
        self, cifarctl: Cifarctl, pictures: Path, tmp_path: Path
    ) -> None:
        run = trained(pictures / "classes", tmp_path / "run")
        more = shutil.copytree(pictures / "classes", tmp_path / "more")
        picture(more / "cat" / "new.png")
        done = cifarctl("evaluate", "-m", run, "--data", more)
        assert "54 of 61 images are copies of those that the model was trained with" in done.err
        done = cifarctl("evaluate", "-m", run, "--data", pictures / "list.csv")
        assert "54 of 60 images are copies of those that the model was trained with" in done.err
        seen = Source.trained_on(weights.read_info(run / "model.safetensors").data, None, None).load("train").paths
        for path in (Path(path) for path in seen or ()):
            target = tmp_path / "seen" / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        refused = cifarctl("evaluate", "-m", run, "--data", tmp_path / "seen")
        assert (refused.code, "so they are no test" in refused.error) == (1, True)
        with pytest.raises(DataError, match="so they are no test"):
            library.evaluate(library.load_classifier(run), data=tmp_path / "seen")
        assert cifarctl("evaluate", "-m", run, "--data", tmp_path / "seen", "--allow-changed-data").code == 0

    def test_severities_of_one_picture_are_remarked(self, tmp_path: Path) -> None:
        labels = np.tile(np.array([0, 1, 1, 0, 2, 0, 1, 2, 2, 0]), 5)
        images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)
        np.savez(tmp_path / "noise.npz", images=images, labels=labels)
        assert (
            "its labels repeat 5 times in the same order, as in CIFAR-10-C"
            in Source(str(tmp_path / "noise.npz")).check()[0]
        )
        np.savez(tmp_path / "in turn.npz", images=images, labels=np.arange(50) % 2)
        assert Source(str(tmp_path / "in turn.npz")).check() == ()


class TestArraysOfAnySize:
    @pytest.mark.parametrize(
        ("shape", "says"),
        [
            ((20, 28, 28), "grey, read as RGB; 28×28 pixels, resized to 32×32"),
            ((20, 1, 28, 28), "grey, read as RGB; 28×28 pixels, resized to 32×32"),
            ((20, 32, 32, 1), "grey, read as RGB"),
            ((20, 3, 48, 64), "64×48 pixels, resized to 32×32"),
            ((20, 48, 64, 3), "64×48 pixels, resized to 32×32"),
        ],
    )
    def test_are_resized_as_files_are(self, tmp_path: Path, shape: tuple[int, ...], says: str) -> None:
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        path = tmp_path / "x.npz"
        np.savez(path, images=images, labels=np.arange(20) // 10)
        source = Source(str(path))
        assert source.check() == (f"{path}: images: {says}",)
        pixels = images[0].transpose(1, 2, 0) if shape[1] in (1, 3) else images[0]
        Image.fromarray(pixels.squeeze()).save(tmp_path / "first.png")
        (_, expected), *_ = read_images([tmp_path / "first.png"])
        found = replace(source, only_measured=True).load("test").images[0]
        assert np.array_equal(found.numpy(), expected)  # type: ignore[arg-type]


class TestDarkArrays:
    """Of 255: as files of 16 bits, they are not trained on without a word."""

    def images(self, most: int) -> np.ndarray:
        return np.random.default_rng(0).integers(0, most, (20, 32, 32, 3), np.uint8, endpoint=True)

    def test_of_zeros_and_ones_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npz"
        np.savez(path, images=self.images(1), labels=np.arange(20) % 2)
        for data, name in ((path, f"{path}: images"), (self.images(1), "train images")):
            with pytest.raises(DataError) as caught:
                library.inspect_data(data)
            assert str(caught.value) == f"{name}: no value is above 1 of 255, so they are nearly black"
            assert caught.value.hint == "black is 0 and white is 255: multiply by 255 before making integers"

    def test_of_few_grey_levels_are_said(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npz"
        np.savez(path, images=self.images(16), labels=np.arange(20) % 2)
        dark = "no value is above 16 of 255, so they are nearly black"
        assert Source(str(path)).check() == (f"{path}: images: {dark}",)
        assert f"<arrays>: train images: {dark}" in library.inspect_data(self.images(16)).remarks
        np.savez(path, images=self.images(17), labels=np.arange(20) % 2)
        assert Source(str(path)).check() == ()

    def test_without_axes_are_refused(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", images=np.uint8(3), labels=np.array([0, 1]))
        with pytest.raises(DataError, match=r"x.npz: all images: uint8 \(\), not \(N, 3, 32, 32\)"):
            Source(str(tmp_path / "x.npz")).check()


class TestNames:
    @pytest.mark.parametrize(
        ("name", "hint"),
        [("CAT", "did you mean cat?"), ("horze", "did you mean horse?"), ("ant", "else"), ("12", "else"), ("2", "02?")],
    )
    def test_that_are_unknown_are_guessed_if_one_is_near(self, name: str, hint: str) -> None:
        assert hint_at_near(name, ["Cat", "cat", "horse", "112", "02"], "else").endswith(hint)

    def test_of_classes_that_are_numbers_are_matched_as_numbers(self, cifarctl: Cifarctl, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), np.uint8)
        labels = np.arange(48) % 12
        for i, (pixels, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            path = tmp_path / "numbers" / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        np.savez(tmp_path / "numbers.npz", images=images, labels=labels)
        run = trained(tmp_path / "numbers", tmp_path / "run")
        source = Source.trained_on(
            {}, str(tmp_path / "numbers.npz"), None, classes=library.load_classifier(run).classes
        )
        found = source.load("test")
        assert found.classes[2] == "10"  # in alphabetical order
        assert [found.classes[label] for label in found.labels] == list(map(str, sorted(labels.tolist())))
        np.savez(tmp_path / "more.npz", images=images, labels=np.arange(48) % 13)
        refused = cifarctl("evaluate", "-m", run, "--data", tmp_path / "more.npz")
        assert (refused.code, "label 12 is not among the model's classes" in refused.error) == (1, True)

    def test_that_look_alike_are_remarked(self, tmp_path: Path) -> None:
        for name in ("Cat", "cat", "dog"):
            for i in range(4):
                picture(tmp_path / name / f"{i}.png")
        if len(list(tmp_path.iterdir())) == 3:  # the file system tells upper case from lower case
            assert Source(str(tmp_path)).check() == (
                f"{tmp_path}: names that look alike are different classes: 'Cat', 'cat'",
            )

    def test_that_are_the_same_number_are_remarked(self, tmp_path: Path) -> None:
        for i, label in enumerate(("01", "1", "2") * 3):
            picture(tmp_path / label / f"{i}.png")
        assert Source(str(tmp_path)).check() == (f"{tmp_path}: names that look alike are different classes: '01', '1'",)

    def test_in_two_unicode_forms_are_explained(self, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text(
            "path,label,split\n1.png,caf\u00e9,train\n2.png,bar,train\n3.png,cafe\u0301,test\n", encoding="utf-8"
        )
        with pytest.raises(DataError, match="is no class of the training images") as caught:
            Source(str(tmp_path / "list.csv")).check()
        assert caught.value.hint == "the names look the same, but Unicode writes them 'cafe\\u0301' and 'caf\\xe9'"


def test_columns_that_are_not_used_are_said(tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / f"{i}.png")
    rows = [f"{i}.png,{'ab'[i % 2]},train,8" for i in range(8)]
    (tmp_path / "list.csv").write_text("\n".join(["", "path,label,Set,width", *rows]))
    assert Source(str(tmp_path / "list.csv")).check() == (f"{tmp_path / 'list.csv'}: columns not used: Set, width",)


def test_a_program_that_asks_wrongly_is_told() -> None:
    images = np.zeros((40, 32, 32, 3), np.uint8)
    assert str(library.inspect_data(images)).startswith("<arrays>: 40 images without labels: 33 for training")
    for arguments in ({"val_size": "x"}, {"val_size": 0}, {"seed": 2.5}):
        with pytest.raises(UsageError, match=f"`{next(iter(arguments))}` is"):
            library.inspect_data(images, **arguments)
