"""`reconstruct`: originals beside what the autoencoder makes of them."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from cifarctl import weights
from cifarctl.data import Source
from cifarctl.data.splits import choose_shown
from cifarctl.inference import encode

from support import Cifarctl


def test_a_labelled_grid_of_test_images(cifarctl: Cifarctl, autoencoder_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    done = cifarctl("reconstruct", "-m", autoencoder_run, "--count", 15, "-o", out, "--json")
    assert done.code == 0
    assert done.json["n"] == len(done.json["images"]) == 15
    assert 5 < done.json["psnr_image_mean"] < 60
    with Image.open(out) as picture:
        assert picture.width > 1000
        assert picture.height > 800  # two bands


def test_the_users_own_files_of_any_size(
    cifarctl: Cifarctl, autoencoder_run: Path, image_folder: Path, tmp_path: Path
) -> None:
    files = sorted((image_folder / "test" / "red").iterdir())[:3]
    done = cifarctl("reconstruct", *files, "-m", autoencoder_run, "-o", tmp_path / "grid.png", "--json")
    assert [image["name"] for image in done.json["images"]] == [str(path) for path in files]


def test_a_folder_gets_one_picture_a_file(
    cifarctl: Cifarctl, autoencoder_run: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pictures"
    assert cifarctl("reconstruct", photos, "-m", autoencoder_run, "-o", out).code == 0
    pictures = sorted(out.iterdir())
    assert len(pictures) == 30
    assert pictures[0].name == f"0000-{sorted(photos.iterdir())[0].stem}.png"
    with Image.open(pictures[0]) as picture:
        assert picture.size == (32, 32)


def test_images_of_a_folder_are_of_all_classes_and_have_their_files_names(
    cifarctl: Cifarctl, autoencoder_run: Path, image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pictures"
    shown = ("reconstruct", "-m", autoencoder_run, "--data", image_folder, "--count", 5)
    first = cifarctl(*shown, "-o", out, "--json").json["images"]
    files = [Path(image["name"]) for image in first]
    assert Counter(file.parent for file in files).most_common() in (
        [(image_folder / "test" / "blue", 3), (image_folder / "test" / "red", 2)],
        [(image_folder / "test" / "red", 3), (image_folder / "test" / "blue", 2)],
    )
    assert all(file.is_file() for file in files)
    assert sorted(path.name for path in out.iterdir()) == [
        f"{i:04d}-{file.parent.name}-{file.stem}.png" for i, file in enumerate(files)
    ]
    with_latents = cifarctl(*shown, "-o", tmp_path / "grid.png", "--latents", tmp_path / "z.safetensors", "--json")
    assert [image["name"] for image in with_latents.json["images"]] == [image["name"] for image in first]
    assert [image["psnr"] for image in with_latents.json["images"]] == pytest.approx(
        [image["psnr"] for image in first], abs=1e-3
    )


def test_images_of_no_files_are_the_first_ones(cifarctl: Cifarctl, autoencoder_run: Path, tmp_path: Path) -> None:
    done = cifarctl("reconstruct", "-m", autoencoder_run, "--count", 3, "-o", tmp_path / "grid.png", "--json")
    test = Source("synthetic").load("test")
    assert [image["name"] for image in done.json["images"]] == [f"{i} {test.classes[test.labels[i]]}" for i in range(3)]


class TestWhichImagesStandForASplit:
    def test_of_mixed_classes_the_first_ones(self) -> None:
        assert choose_shown(torch.tensor([3, 3, 0, 1, 3]), 2).tolist() == [0, 1]
        assert choose_shown(torch.tensor([1, 0, 1]), 5).tolist() == [0, 1, 2]

    @pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
    def test_class_by_class_as_many_of_each_as_there_are(self, order: list[int]) -> None:
        labels = torch.cat([torch.full((n,), label) for label, n in zip(order, (50, 2, 9), strict=True)])
        chosen = choose_shown(labels, 12)
        assert chosen.tolist() == sorted({*chosen.tolist()})
        assert [int((labels[chosen] == label).sum()) for label in order] == [5, 2, 5]
        assert torch.equal(choose_shown(labels, 12), chosen)
        assert choose_shown(labels, 12, seed=1).tolist() != chosen.tolist()

    def test_with_more_classes_than_images_each_is_of_another_class(self) -> None:
        labels = torch.arange(100).repeat_interleave(5)
        chosen = labels[choose_shown(labels, 12)]
        assert len(chosen.unique()) == 12
        assert chosen.max() > 50  # not the first twelve

    @pytest.mark.parametrize("labels", [[], [0], [0, 0, 0], [0, 1]])
    def test_all_of_few(self, labels: list[int]) -> None:
        assert choose_shown(torch.tensor(labels, dtype=torch.int64), 12).tolist() == [*range(len(labels))]


def test_an_unreadable_file_is_named_and_the_rest_is_drawn(
    cifarctl: Cifarctl, autoencoder_run: Path, photos: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    done = cifarctl("reconstruct", next(photos.iterdir()), broken, "-m", autoencoder_run, "-o", tmp_path / "grid.png")
    assert done.code == 1
    assert "broken.png: not an image" in done.error
    assert (tmp_path / "grid.png").exists()
    alone = cifarctl("reconstruct", broken, "-m", autoencoder_run, "-o", tmp_path / "alone.png")
    assert alone.code == 1
    assert "broken.png: not an image" in alone.error
    assert not (tmp_path / "alone.png").exists()


@pytest.mark.parametrize("arguments", [("-o", "x.jpg"), ("--count", 0)])
def test_wrong_usage(cifarctl: Cifarctl, autoencoder_run: Path, arguments: tuple[object, ...]) -> None:
    done = cifarctl("reconstruct", "-m", autoencoder_run, *arguments)
    assert done.code == 2
    assert str(arguments[0]).strip("-") in done.error


def test_the_latents_of_a_split_are_written_with_their_indices(
    cifarctl: Cifarctl, autoencoder_run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "test.safetensors"
    done = cifarctl("reconstruct", "-m", autoencoder_run, "--latents", file)
    assert done.code == 0
    assert done.out == f"{file}: 1,000 latents of 64 floats\n"
    assert [path.name for path in tmp_path.iterdir()] == ["test.safetensors"]
    tensors, test = load_file(file), Source("synthetic").load("test")
    model, _ = weights.load_autoencoder(autoencoder_run / "model.safetensors", torch.device("cpu"))
    assert torch.allclose(tensors["latents"], encode(model, test.images), atol=1e-5)
    assert torch.equal(tensors["labels"], test.labels)
    assert tensors["indices"].tolist() == list(range(1000))
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["split"] == "test"


def test_the_latents_of_files_are_written_with_their_paths(
    cifarctl: Cifarctl, autoencoder_run: Path, photos: Path, tmp_path: Path
) -> None:
    file, grid = tmp_path / "z.safetensors", tmp_path / "grid.png"
    done = cifarctl("reconstruct", photos, "-m", autoencoder_run, "--latents", file, "-o", grid, "--json")
    assert done.code == 0
    assert (done.json["latents"], done.json["out"]) == (str(file), str(grid))
    with safe_open(file, framework="pt") as opened:
        paths = json.loads(opened.metadata()["paths"])
        assert opened.get_tensor("latents").shape == (30, 64)
    assert paths == sorted(str(path) for path in photos.iterdir())
    assert grid.exists()


def test_what_is_read_is_never_replaced(cifarctl: Cifarctl, autoencoder_run: Path, tmp_path: Path) -> None:
    photo = tmp_path / "pictures" / "photo.png"
    photo.parent.mkdir()
    Image.new("RGB", (40, 40), "teal").save(photo)
    before = photo.read_bytes()
    run = ("-m", autoencoder_run)
    for arguments, says in [
        ((photo, "-o", photo), "would replace one of the files that are read"),
        ((photo.parent, "-o", photo), "would replace one of the files that are read"),
        ((photo.parent, "-o", photo.parent), "the pictures are read from this folder"),
        ((photo, "--latents", photo), "not a .safetensors file"),
        ((photo, "--latents", autoencoder_run / "model.safetensors"), "would replace one of the files that are read"),
        ((photo, "--latents", autoencoder_run / "last.safetensors"), "would replace a file of the run"),
    ]:
        done = cifarctl("reconstruct", *arguments, *run)
        assert (done.code, done.out) == (2, "")
        assert says in done.error
    assert photo.read_bytes() == before
    assert list(photo.parent.iterdir()) == [photo]
    assert cifarctl("reconstruct", photo, "-o", photo.parent / "grid.png", *run).code == 0


def test_options_of_a_split_are_refused_with_images(
    cifarctl: Cifarctl, autoencoder_run: Path, photos: Path, tmp_path: Path
) -> None:
    given = ("--data", tmp_path, "--split", "train", "--count", 2)
    done = cifarctl("reconstruct", photos, "-m", autoencoder_run, *given, "-o", tmp_path / "grid.png")
    assert (done.code, done.error) == (2, "error: --data, --split, --count: not with images, which are all drawn")


@pytest.mark.parametrize("command", ["predict", "reconstruct"])
def test_a_run_is_no_folder_of_pictures(cifarctl: Cifarctl, autoencoder_run: Path, command: str) -> None:
    done = cifarctl(command, autoencoder_run)
    assert (done.code, done.out) == (2, "")
    assert done.error == f"error: {autoencoder_run}: the folder of a training run, not of pictures"
    assert f"--model {autoencoder_run}" in done.err
