"""`evaluate` of a folder of runs: each row is what the model alone would give, and says what it was measured on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cifarctl import models, weights
from cifarctl.cli import measure
from cifarctl.data import Source
from cifarctl.models.base import Classifier
from cifarctl.training.run_dir import RunDir

from support import Cifarctl

CLASSES = ("ant", "bee", "cow")
CONFIG: dict[str, Any] = {
    "options": {"kind": "classifier", "arch": "mlp", "recipe": "fast", "seed": 0},
    "recipe": {"epochs": 3},
}


def write_images(folder: Path, per_class: int, seed: int = 0) -> Path:
    """FOLDER/CLASS/*.png of noise."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / name / f"{i:02d}.png")
    return folder


def write_run(folder: Path, source: Source, kind: models.Kind = "classifier", seed: int = 0, **metrics: Any) -> Path:
    """The folder of a run that was trained on `source`, with random weights."""
    torch.manual_seed(seed)
    size: dict[str, Any] = {"classes": 3, "hidden": [8]} if kind == "classifier" else {"latent_dim": 64}
    arch = "mlp" if kind == "classifier" else "conv2"
    model = models.build(arch, **size)
    folder.mkdir(parents=True, exist_ok=True)
    classes = CLASSES if isinstance(model, Classifier) else ()
    info = weights.ModelInfo(kind, arch, size, classes, source.describe(), metrics)
    weights.save(folder / "model.safetensors", weights.of_model(model), info)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "summary.json").write_text(json.dumps(dict.fromkeys(("run", "model", "kind", "test"))))
    return folder


def unfolded(text: str) -> str:
    """The text without blanks: of a long path in it, a terminal breaks the line."""
    return "".join(text.split())


def rows_of(cifarctl: Cifarctl, *arguments: object) -> dict[str, dict[str, Any]]:
    """The rows of `evaluate --json` by the name of the run's folder."""
    done = cifarctl("evaluate", *arguments, "--json")
    return {Path(row["model"]).parent.name: row for row in done.json["results"]}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data without splits: 60 images, of which training holds out 6 for its test."""
    return write_images(tmp_path_factory.mktemp("images") / "D", 20)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("others") / "E", 10, seed=1)


class TestImages:
    @pytest.mark.parametrize("kind", ["classifier", "autoencoder"])
    def test_a_model_is_measured_on_what_its_training_held_out_and_another_on_all(
        self, cifarctl: Cifarctl, images: Path, others: Path, tmp_path: Path, kind: models.Kind
    ) -> None:
        for number, (name, data) in enumerate({"a": images, "b": others, "c": images}.items()):
            write_run(tmp_path / "runs" / name, Source(str(data)), kind, number)
        rows = rows_of(cifarctl, "-m", tmp_path / "runs", "--data", images)
        assert {name: row["n"] for name, row in rows.items()} == {"a": 6, "b": 60, "c": 6}
        for name, row in rows.items():
            alone = cifarctl("evaluate", "-m", tmp_path / "runs" / name, "--data", images, "--json").json
            assert row["metrics"] == alone["metrics"]
        shown = unfolded(cifarctl("evaluate", "-m", tmp_path / "runs", "--data", images).out)
        assert unfolded(f"runs/b: measured on 60 test images of {images}") in shown
        assert unfolded(f"runs/c: measured on 6 test images of {images}") in shown

    def test_models_side_by_side_are_measured_on_what_one_of_them_held_out(
        self, cifarctl: Cifarctl, images: Path, others: Path, tmp_path: Path
    ) -> None:
        own = write_run(tmp_path / "own", Source(str(images)))
        new = write_run(tmp_path / "new", Source(str(others)), seed=1)
        for models_ in ((own, new), (new, own)):
            done = cifarctl(
                "evaluate", *(word for each in models_ for word in ("-m", each)), "--data", images, "--json"
            )
            assert [result["n"] for result in done.json["results"]] == [6, 6]
            assert "measured are the images that training on it held out, with all models" in done.err
        alone = cifarctl("evaluate", "-m", own, "--data", images, "--json").json
        assert done.json["results"][1]["confusion_matrix"] == alone["confusion_matrix"]
        assert cifarctl("evaluate", "-m", new, "--data", images, "--json").json["n"] == 60

    def test_a_test_split_is_the_same_for_the_models_of_other_data(
        self, cifarctl: Cifarctl, others: Path, tmp_path: Path
    ) -> None:
        splits = tmp_path / "S"
        for number, split in enumerate(("train", "val", "test")):
            write_images(splits / split, 4, seed=number)
        own = write_run(tmp_path / "own", Source(str(splits)))
        new = write_run(tmp_path / "new", Source(str(others)), seed=1)
        compared = cifarctl("evaluate", "-m", own, "-m", new, "--data", splits, "--json").json
        assert [result["n"] for result in compared["results"]] == [12, 12]
        # Nothing is drawn from val, so that the seed is no obstacle.
        seeded = write_run(tmp_path / "seeded", Source(str(splits), seed=1), seed=2)
        compared = cifarctl("evaluate", "-m", own, "-m", seeded, "--split", "val", "--json").json
        assert [result["n"] for result in compared["results"]] == [12, 12]

    def test_rows_of_images_that_other_seeds_drew_say_so(
        self, cifarctl: Cifarctl, images: Path, tmp_path: Path
    ) -> None:
        for seed in (0, 1):
            write_run(tmp_path / "runs" / f"seed{seed}", Source(str(images), seed=seed), seed=seed)
        shown = unfolded(cifarctl("evaluate", "-m", tmp_path / "runs", "--split", "val").out)
        for seed in (0, 1):
            assert unfolded(f"seed{seed}: measured on 5 val images of {images}, drawn by seed {seed}") in shown
        shown = unfolded(cifarctl("evaluate", "-m", tmp_path / "runs").out)
        assert shown.endswith(unfolded(f"Measured on 6 test images of {images}"))

    @pytest.mark.parametrize("form", ["another order", "a class less", "numbers"])
    def test_data_that_a_model_takes_alone_it_takes_in_a_table(
        self, cifarctl: Cifarctl, images: Path, others: Path, tmp_path: Path, form: str
    ) -> None:
        dataset = Source(str(others), only_measured=True).load("test")
        pixels, labels = dataset.images.permute(0, 2, 3, 1).numpy(), dataset.labels.numpy()
        data = tmp_path / "data.npz"
        if form == "another order":
            np.savez(data, images=pixels, labels=(labels + 1) % 3, classes=np.array(["cow", "ant", "bee"]))
        elif form == "numbers":
            np.savez(data, images=pixels, labels=labels)
        else:
            data = Path(shutil.copytree(others, tmp_path / "less"))
            shutil.rmtree(data / "bee")
        for number in range(2):
            write_run(tmp_path / "runs" / f"{number}", Source(str(images)), seed=number)
        rows = rows_of(cifarctl, "-m", tmp_path / "runs", "--data", data)
        for name, row in rows.items():
            alone = cifarctl("evaluate", "-m", tmp_path / "runs" / name, "--data", data, "--json").json
            assert (row["n"], row["metrics"]) == (20 if form == "a class less" else 30, alone["metrics"])

    def test_the_classes_of_each_model_number_its_labels(
        self, cifarctl: Cifarctl, images: Path, others: Path, tmp_path: Path
    ) -> None:
        run = write_run(tmp_path / "runs" / "first", Source(str(images)))
        turned = Path(shutil.copytree(run, tmp_path / "runs" / "turned"))
        info = weights.read_info(run / "model.safetensors")
        model, _ = weights.load_classifier(run / "model.safetensors", torch.device("cpu"))
        data = {**info.data, "classes": list(CLASSES[::-1])}
        reverse = weights.ModelInfo("classifier", "mlp", info.config, CLASSES[::-1], data)
        weights.save(turned / "model.safetensors", weights.of_model(model), reverse)
        rows = rows_of(cifarctl, "-m", tmp_path / "runs", "--data", others)
        for name, row in rows.items():
            alone = cifarctl("evaluate", "-m", tmp_path / "runs" / name, "--data", others, "--json").json
            assert row["confusion_matrix"] == alone["confusion_matrix"]
        assert rows["first"]["confusion_matrix"] == rows["turned"]["confusion_matrix"][::-1]


class TestDetails:
    def test_they_belong_to_the_weights_while_a_new_run_is_to_replace_these(
        self, cifarctl: Cifarctl, images: Path, tmp_path: Path
    ) -> None:
        run = write_run(tmp_path / "runs" / "a", Source(str(images)), test={"n": 6, "accuracy": 0.5})
        new = RunDir(run, overwrite=True)
        changed = {"options": {**CONFIG["options"], "seed": 7, "recipe": "best"}, "recipe": {"epochs": 90}}
        new.write_json(new.config, changed)
        for how in ((), ("--stored",)):
            row = rows_of(cifarctl, "-m", tmp_path / "runs", *how)["a"]
            assert (row["epochs"], row["seed"], row["recipe"], row["state"]) == (3, 0, "fast", "running")
            assert "metrics" in row
        # As if it was killed: its files stay, and its lock goes.
        shutil.copytree(run / ".cifarctl-new", tmp_path / "kept")
        new.close()
        shutil.copytree(tmp_path / "kept", run / ".cifarctl-new")
        row = rows_of(cifarctl, "-m", tmp_path / "runs", "--stored")["a"]
        assert (row["epochs"], row["seed"], row["state"], row["metrics"]["accuracy"]) == (3, 0, "unfinished", 0.5)

    def test_a_run_whose_place_is_taken_meanwhile_has_no_figures(
        self, cifarctl: Cifarctl, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = write_run(tmp_path / "runs" / "a", Source(str(images)))
        measure_alone = measure.measure

        def measures(*arguments: Any) -> measure.Measured:
            new = RunDir(run, overwrite=True)
            write_run(new.config.parent, Source(str(images)), seed=1)
            new.write_json(new.config, {**CONFIG, "id": "new"})
            new.take_place()
            new.close()
            return measure_alone(*arguments)

        monkeypatch.setattr(measure, "measure", measures)
        row = rows_of(cifarctl, "-m", tmp_path / "runs")["a"]
        assert "metrics" not in row
        assert "another run took its place while it was measured" in row["error"]

    def test_a_weights_file_in_a_runs_folder_has_them_too(
        self, cifarctl: Cifarctl, images: Path, tmp_path: Path
    ) -> None:
        run = write_run(tmp_path / "runs" / "a", Source(str(images)), test={"n": 6, "accuracy": 0.5})
        by_file = rows_of(cifarctl, "-m", run / "model.safetensors", "--stored")
        assert by_file == rows_of(cifarctl, "-m", run, "--stored")
        assert by_file["a"]["epochs"] == 3

    def test_what_training_measured_on_val_is_called_so(self, cifarctl: Cifarctl, images: Path, tmp_path: Path) -> None:
        train = Path(shutil.copytree(images, tmp_path / "few" / "train")).parent
        few = ("--arch", "mlp", "--set", "model.hidden=[8]", "--epochs", 1, "--no-tensorboard")
        trained = cifarctl("train-clf", "--data", train, *few, "--out", tmp_path / "runs" / "few", "--json").json
        write_run(tmp_path / "runs" / "other", Source(str(images)), test={"n": 6, "accuracy": 0.25})
        row = rows_of(cifarctl, "-m", tmp_path / "runs", "--stored")["few"]
        assert trained["test"] is None
        assert (row["split"], row["n"]) == ("val", 6)
        assert row["metrics"]["accuracy"] == trained["val"]["accuracy"]
        done = cifarctl("evaluate", "-m", tmp_path / "runs", "--stored")
        assert done.code == 0
        assert unfolded(f"few: measured on 6 val images of {train}, which has no test split") in unfolded(done.out)

    def test_a_run_that_stores_no_measurement_says_why(self, cifarctl: Cifarctl, images: Path, tmp_path: Path) -> None:
        run = write_run(tmp_path / "runs" / "bare", Source(str(images)))
        done = cifarctl("evaluate", "-m", tmp_path / "runs", "--stored")
        assert done.error == "error: 1 of 1 could not be read"
        assert unfolded("it stores no measurement") in unfolded(done.out)
        (run / "summary.json").unlink()
        early = cifarctl("evaluate", "-m", tmp_path / "runs", "--stored")
        assert early.code == 0
        assert unfolded("measured at the end of training") in unfolded(early.out)


class TestWhatIsNoRun:
    def test_the_files_of_other_programs_are_no_run(self, cifarctl: Cifarctl, images: Path, tmp_path: Path) -> None:
        runs = tmp_path / "runs"
        write_run(runs / "ours", Source(str(images)), test={"n": 6, "accuracy": 0.5})
        for folder in (runs, runs / "theirs"):
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text('{"architectures": ["BertModel"]}')
        assert rows_of(cifarctl, "-m", runs, "--stored").keys() == {"ours"}
        done = cifarctl("evaluate", "--json", "-m", runs / "ours", runs / "theirs")
        (row,) = [row for row in done.json["results"] if "error" in row]
        assert (row["state"], row["error"]) == (
            "no run",
            f"{runs / 'theirs'}: a folder without model.safetensors, so no finished run",
        )
        shutil.copy(runs / "ours" / "model.safetensors", runs / "theirs")
        assert rows_of(cifarctl, "-m", runs, "--stored")["theirs"]["state"] == "finished"
        save_file({"weight": torch.zeros(2)}, runs / "theirs" / "model.safetensors", {"format": "pt"})
        done = cifarctl("evaluate", "--json", "-m", runs / "ours", runs / "theirs")
        (row,) = [row for row in done.json["results"] if "error" in row]
        assert row["state"] == "no run"
        assert "no model of cifarctl's" in row["error"]

    def test_models_that_are_not_directly_in_the_folder_are_left_out_with_a_word(
        self, cifarctl: Cifarctl, images: Path, tmp_path: Path
    ) -> None:
        runs = tmp_path / "runs"
        write_run(runs / "a", Source(str(images)), test={"n": 6, "accuracy": 0.5})
        (runs / "notes").mkdir()
        assert cifarctl("evaluate", "-m", runs, "--stored").err == ""
        shutil.copytree(runs / "a", runs / "group" / "deeper" / "b")
        shutil.copy(runs / "a" / "model.safetensors", runs / "loose.safetensors")
        done = cifarctl("evaluate", "-m", runs, "--stored")
        assert done.code == 0
        left_out = f"{runs / 'group'}, {runs / 'loose.safetensors'}"
        assert done.err == f"{runs}: the table has the runs directly in it, and leaves out {left_out}\n"
        named = cifarctl("evaluate", "-m", runs, "-m", runs / "group", "-m", runs / "loose.safetensors", "--stored")
        assert "leaves out" not in named.err

    def test_runs_in_a_run_are_named(self, cifarctl: Cifarctl, images: Path, tmp_path: Path) -> None:
        run = write_run(tmp_path / "runs", Source(str(images)))
        inner = write_run(run / "first", Source(str(images)))
        done = cifarctl("evaluate", "-m", run, "--json")
        assert done.json["n"] == 6
        assert f"{run}: a run itself, so the runs in it are left out: {inner}" in done.err
