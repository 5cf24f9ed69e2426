"""A run and its weights know their data: other data is noticed when a run is resumed or a model is measured."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from test_folders import make_folder, picture

from cifarctl import api, weights
from cifarctl.data import Dataset, Source
from cifarctl.data.data_file import data_file_path, write_data_file
from cifarctl.data.fingerprint import fingerprint
from cifarctl.data.synthetic import draw_synthetic
from cifarctl.errors import ChangedDataError, RunDirError
from cifarctl.training.loop import EpochDone
from cifarctl.training.options import TrainOptions
from cifarctl.training.session import Finished, train

from support import Cifarctl, MadeOnce, model_bytes

QUICK = {"kind": "classifier", "arch": "mlp", "precision": "fp32", "tensorboard": False}


def start(data: Path | str, out: Path, epochs: int = 2, **options: object) -> None:
    """A run that ends after its first epoch, as if killed."""
    asked = TrainOptions(data=str(data), overrides={"epochs": epochs}, **{**QUICK, **options})  # type: ignore[arg-type]
    events = train(asked, out)
    assert any(isinstance(event, EpochDone) for event in events)
    events.close()


@pytest.fixture(scope="module")
def original(made_once: MadeOnce) -> Path:
    """A folder of images, and beside it `run`, a model that was trained on it. No test may change it."""

    def make(root: Path) -> None:
        data = make_folder(root / "data", {"cat": 30, "dog": 30}, {"cat": 5, "dog": 5})
        asked = TrainOptions(data=str(data), overrides={"epochs": 1}, **QUICK)  # type: ignore[arg-type]
        assert isinstance(list(train(asked, root / "run"))[-1], Finished)

    return made_once("fingerprint", make)


@pytest.fixture
def moved(original: Path, tmp_path: Path) -> Path:
    """A copy of the data at another place, which a test may change."""
    return shutil.copytree(original / "data", tmp_path / "moved")


@pytest.fixture
def run(original: Path, tmp_path: Path, moved: Path) -> Path:
    """The same model, trained on `moved`."""
    run = shutil.copytree(original / "run", tmp_path / "run")
    described_as(run, {**weights.read_info(run / "model.safetensors").data, "name": str(moved)})
    return run


def described_as(run: Path, data: dict[str, object]) -> None:
    """Give the run's weights file another `data` field."""
    path = run / "model.safetensors"
    weights.save(path, load_file(path), replace(weights.read_info(path), data=data))


@contextmanager
def images_added(data: Path) -> Iterator[None]:
    for i in range(10):
        picture(data / "train" / "cat" / f"new{i}.png")
    yield
    for path in (data / "train" / "cat").glob("new*"):
        path.unlink()


class TestDescription:
    def test_it_is_in_the_configuration_the_checkpoint_and_the_weights(self, original: Path, tmp_path: Path) -> None:
        start(original / "data", tmp_path / "run")
        configured = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
        with safe_open(tmp_path / "run" / "checkpoint.safetensors", framework="pt") as file:
            checkpointed = json.loads(file.metadata()["position"])["data"]
        assert configured == checkpointed == weights.read_info(tmp_path / "run" / "last.safetensors").data
        assert configured["name"] == str(original / "data")
        assert configured["classes"] == ["cat", "dog"]
        assert [configured["files"][split]["count"] for split in ("train", "test")] == [60, 10]

    def test_it_is_the_same_at_another_place_and_changes_with_names_and_sizes(
        self, original: Path, moved: Path
    ) -> None:
        before = Source(str(original / "data")).describe()
        after = Source(str(moved)).describe()
        assert {**after, "name": ""} == {**before, "name": ""}
        image = moved / "train" / "cat" / "000.png"
        image.rename(image.with_name("0.png"))
        some = "of the 60 images in train, some have other names or sizes, or another order"
        assert Source(str(moved)).changes(before, "train") == [some]
        image.with_name("0.png").rename(image)
        assert Source(str(moved)).changes(before, "train") == []
        image.write_bytes(image.read_bytes() + b"\n")
        assert Source(str(moved)).changes(before, "val") == [some]
        assert Source(str(moved)).changes(before, "test") == []
        image.unlink()
        assert Source(str(moved)).changes(before, "train") == ["train has 59 images, not 60"]

    def test_a_renamed_class_is_named(self, original: Path, moved: Path) -> None:
        for split in ("train", "test"):
            (moved / split / "cat").rename(moved / split / "zebra")
        found = Source(str(moved)).changes(Source(str(original / "data")).describe(), "test")
        assert found == ["classes: only then: cat; only now: zebra"]


class TestEvaluate:
    def test_val_and_train_are_refused_after_images_were_added(
        self, cifarctl: Cifarctl, run: Path, moved: Path
    ) -> None:
        same = cifarctl("evaluate", "-m", run, "--split", "val", "--split", "train", "--json").json["results"]
        assert [result["data_changes"] for result in same] == [[], []]
        with images_added(moved):
            for split in ("val", "train"):
                for more in ((), ("--data", moved)):
                    refused = cifarctl("evaluate", "-m", run, "--split", split, *more)
                    assert refused.code == 1
                    assert "train has 70 images, not 60" in refused.error
                    assert f"hint: --allow-changed-data measures on {split} all the same" in refused.err
            allowed = cifarctl("evaluate", "-m", run, "--split", "val", "--allow-changed-data", "--json")
            assert allowed.code == 0
            assert "train has 70 images, not 60" in allowed.err
            assert allowed.json["data_changes"] == ["train has 70 images, not 60"]
            described = weights.read_info(run / "model.safetensors").data
            with pytest.raises(ChangedDataError, match="69 images for validation are more than it has to spare"):
                Source.trained_on({**described, "val_size": 69}, None, None).check_unchanged(
                    described, "val", allow=True
                )
            with pytest.raises(ChangedDataError, match="70 images"):
                api.evaluate(api.load(run), split="val")
            assert cifarctl("evaluate", "-m", run).err == ""  # the test images are the same

    def test_test_says_that_its_images_have_changed_and_goes_on(
        self, cifarctl: Cifarctl, run: Path, moved: Path
    ) -> None:
        picture(moved / "test" / "dog" / "new.png")
        done = cifarctl("evaluate", "-m", run)
        assert done.code == 0
        changed = f"{moved}: other data than when the model was trained: test has 11 images, not 10"
        assert done.err.splitlines() == [changed]

    def test_the_same_files_at_another_place_are_split_as_in_training(
        self, cifarctl: Cifarctl, run: Path, moved: Path, tmp_path: Path
    ) -> None:
        described = weights.read_info(run / "model.safetensors").data
        described_as(run, {**described, "name": str(tmp_path / "gone"), "val_size": 21, "seed": 5})
        gone = cifarctl("evaluate", "-m", run, "--split", "val")
        assert gone.code == 1
        assert f"{tmp_path / 'gone'}: no such folder" in gone.error
        found = cifarctl("evaluate", "-m", run, "--split", "val", "--data", moved, "--json")
        assert (found.code, found.json["n"], found.err) == (0, 21, "")
        source = Source.trained_on(weights.read_info(run / "model.safetensors").data, str(moved), None)
        expected = Source(str(moved), val_size=21, seed=5).load("val")
        assert torch.equal(source.load("val").images, expected.images)

    def test_a_run_is_measured_from_elsewhere(
        self, cifarctl: Cifarctl, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(original)
        start("data", tmp_path / "run", epochs=1)
        shutil.copy(tmp_path / "run" / "last.safetensors", tmp_path / "model.safetensors")
        monkeypatch.chdir(tmp_path)
        done = cifarctl("evaluate", "-m", "model.safetensors", "--split", "val", "--json")
        assert (done.code, done.json["data"]) == (0, str(original / "data"))

    def test_weights_without_a_fingerprint_go_on_with_a_remark(
        self, cifarctl: Cifarctl, run: Path, moved: Path
    ) -> None:
        described_as(run, {"name": str(moved), "val_size": 6, "seed": 0})
        done = cifarctl("evaluate", "-m", run, "--split", "val", "--json")
        assert (done.code, done.json["n"], done.json["data_changes"]) == (0, 6, None)
        assert "does not say which images it was trained on" in done.err
        assert cifarctl("evaluate", "-m", run).err == ""

    def test_pictures_of_changed_data_are_drawn_with_a_remark(self, moved: Path, run: Path) -> None:
        source = Source.trained_on(weights.read_info(run / "model.safetensors").data, None, None)
        picture(moved / "train" / "dog" / "new.png")
        remark = source.check_unchanged(weights.read_info(run / "model.safetensors").data, "train", allow=True)
        assert remark is not None
        assert "train has 61 images, not 60" in remark


class TestResume:
    def test_other_files_and_other_meanings_of_labels_are_refused(
        self, cifarctl: Cifarctl, moved: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        start(moved, run)
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        with images_added(moved):
            refused = cifarctl("train-clf", "--resume", "--out", run)
            assert refused.code == 1
            assert refused.error.endswith(
                f"{moved}: other data than when the run was started: train has 70 images, not 60"
            )
        for split in ("train", "test"):
            (moved / split / "cat").rename(moved / split / "zebra")
        renamed = cifarctl("train-clf", "--resume", "--out", run)
        assert renamed.code == 1
        assert "classes: only then: cat; only now: zebra" in renamed.error
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before

    def test_other_pixels_in_files_of_the_same_names_and_sizes_are_refused(
        self, cifarctl: Cifarctl, moved: Path, tmp_path: Path
    ) -> None:
        first, other = (moved / "train" / "cat" / f"00{i}.bmp" for i in (1, 2))  # BMPs of one size have as many bytes
        for path, colour in ((first, "red"), (other, "blue")):
            Image.new("RGB", (8, 8), colour).save(path)
        run = tmp_path / "run"
        start(moved, run)
        before = (run / "config.json").read_bytes()
        pixels = other.read_bytes()
        shutil.copy(first, other)
        refused = cifarctl("train-clf", "--resume", "--out", run)
        assert refused.code == 1
        assert refused.error.endswith("image files of the same names and sizes have other pixels")
        assert (run / "config.json").read_bytes() == before
        config = json.loads(before)
        for noted in ({}, {"pixels": {**config["pixels"], "decoder": "another"}}):  # which cannot be compared
            went_on = shutil.copytree(run, tmp_path / f"run {len(noted)}")
            without = {name: value for name, value in config.items() if name != "pixels"}
            (went_on / "config.json").write_text(json.dumps({**without, **noted}))
            assert cifarctl("train-clf", "--resume", "--out", went_on).code == 0
        other.write_bytes(pixels)
        assert cifarctl("train-clf", "--resume", "--out", run).code == 0

    def test_the_same_data_at_another_place_ends_with_the_same_bits(
        self, cifarctl: Cifarctl, original: Path, moved: Path, tmp_path: Path
    ) -> None:
        whole = TrainOptions(data=str(original / "data"), overrides={"epochs": 2}, **QUICK)  # type: ignore[arg-type]
        assert isinstance(list(train(whole, tmp_path / "whole"))[-1], Finished)
        start(moved, tmp_path / "broken")
        moved.rename(tmp_path / "again")
        gone = cifarctl("train-clf", "--resume", "--out", tmp_path / "broken")
        assert (gone.code, f"{moved}: no such folder" in gone.error) == (1, True)
        place = ("--data", tmp_path / "again", "--device", "cpu")
        done = cifarctl("train-clf", "--resume", "--out", tmp_path / "broken", *place)
        assert done.code == 0, done.err
        assert model_bytes(tmp_path / "broken") == model_bytes(tmp_path / "whole")
        config = json.loads((tmp_path / "broken" / "config.json").read_text())
        assert config["options"]["data"] == config["data"]["name"] == str(tmp_path / "again")

    def test_a_run_without_a_fingerprint_goes_on_with_a_remark(
        self, cifarctl: Cifarctl, original: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        start(original / "data", run)
        config = json.loads((run / "config.json").read_text())
        config["data"] = {"name": str(original / "data"), "val_size": 6, "seed": 0}
        del config["encoder_sha256"]
        (run / "config.json").write_text(json.dumps(config))
        done = cifarctl("train-clf", "--resume", "--out", run)
        assert done.code == 0
        assert "the run noted nothing to compare its data with" in done.err

    def test_a_checkpoint_of_other_data_is_refused(
        self, cifarctl: Cifarctl, original: Path, moved: Path, tmp_path: Path
    ) -> None:
        start(original / "data", tmp_path / "one")
        with images_added(moved):
            start(moved, tmp_path / "two")
        shutil.copy(tmp_path / "two" / "checkpoint.safetensors", tmp_path / "one")
        done = cifarctl("train-clf", "--resume", "--out", tmp_path / "one")
        assert done.code == 1
        assert "checkpoint.safetensors: belongs to a run on other data: train has 60 images, not 70" in done.error

    def test_another_autoencoder_is_refused_and_the_same_one_may_have_moved(
        self, cifarctl: Cifarctl, autoencoder_run: Path, tmp_path: Path
    ) -> None:
        encoder = tmp_path / "ae.safetensors"
        shutil.copy(autoencoder_run / "model.safetensors", encoder)
        start("synthetic", tmp_path / "run", encoder=str(encoder), limit=100, val_size=50)
        encoder.rename(tmp_path / "moved.safetensors")
        other = tmp_path / "last.safetensors"
        shutil.copy(autoencoder_run / "last.safetensors", other)
        resume = ("train-clf", "--resume", "--out", tmp_path / "run", "--encoder")
        refused = cifarctl(*resume, other)
        assert (refused.code, "not the autoencoder that the run was started with" in refused.error) == (1, True)
        assert cifarctl(*resume, tmp_path / "moved.safetensors").code == 0


class TestArchive:
    """A data file says which archive it was made from."""

    @pytest.fixture
    def places(self, tmp_path: Path) -> tuple[Path, Path]:
        """Two data folders whose cifar10 has the same classes and comes from two archives."""
        every = draw_synthetic(1000, 0)
        parts = [every.take(torch.arange(first, first + 100)) for first in (0, 100)]
        names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
        splits = [Dataset(part.images, part.labels, names) for part in parts]
        for name, digest in (("one", "a" * 64), ("two", "b" * 64)):
            write_data_file(data_file_path("cifar10", tmp_path / name), splits[0], splits[1], digest)
        return tmp_path / "one", tmp_path / "two"

    def test_another_one_is_said_on_test_and_refused_on_val(
        self, cifarctl: Cifarctl, places: tuple[Path, Path], tmp_path: Path
    ) -> None:
        start("cifar10", tmp_path / "run", epochs=1, data_dir=str(places[0]))
        evaluate = ("evaluate", "-m", tmp_path / "run" / "last.safetensors", "--json")
        assert cifarctl(*evaluate, "--split", "val", "--data-dir", places[0]).json["data_changes"] == []
        other = "its file was made from another archive (SHA-256 bbbbbbbb…, not aaaaaaaa…)"
        on_test = cifarctl(*evaluate, "--data-dir", places[1])
        assert (on_test.code, on_test.json["data_changes"]) == (0, [other])
        assert on_test.err.strip() == f"cifar10: other data than when the model was trained: {other}"
        on_val = cifarctl(*evaluate, "--split", "val", "--data-dir", places[1])
        assert (on_val.code, other in on_val.error) == (1, True)

    def test_a_run_goes_on_with_the_same_one_at_another_place_alone(
        self, cifarctl: Cifarctl, places: tuple[Path, Path], tmp_path: Path
    ) -> None:
        start("cifar10", tmp_path / "run", data_dir=str(places[0]))
        refused = cifarctl("train-clf", "--resume", "--out", tmp_path / "run", "--data-dir", places[1])
        assert (refused.code, "made from another archive" in refused.error) == (1, True)
        places[0].rename(tmp_path / "three")
        assert cifarctl("train-clf", "--resume", "--out", tmp_path / "run", "--data-dir", tmp_path / "three").code == 0


def test_a_run_cannot_be_resumed_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(RunDirError):
        list(train(TrainOptions(kind="classifier", data="synthetic"), tmp_path / "none", resume=True))


def test_a_split_that_an_earlier_version_drew_otherwise_is_refused(cifarctl: Cifarctl, tmp_path: Path) -> None:
    """It could take the last image of a class, and noted no fingerprint."""
    few = {"a": 1, "b": 1, "c": 1, "d": 7}
    data = make_folder(tmp_path / "data", few, few)
    start(data, tmp_path / "run", val_size=4)
    assert cifarctl("evaluate", "-m", tmp_path / "run", "--split", "val").code == 0
    described_as(tmp_path / "run", {"name": str(data), "val_size": 4, "seed": 0})
    refused = cifarctl("evaluate", "-m", tmp_path / "run", "--split", "val")
    assert refused.code == 1
    assert "were drawn by an earlier version" in refused.error
    assert cifarctl("evaluate", "-m", tmp_path / "run", "--split", "test").code == 0


def test_the_order_in_which_files_are_read_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_text("same size")
    assert fingerprint(tmp_path, paths) == fingerprint(tmp_path, list(paths))
    assert fingerprint(tmp_path, paths) != fingerprint(tmp_path, reversed(paths))
