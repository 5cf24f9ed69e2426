"""`reconstruct`: originals beside what the autoencoder makes of them."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from cifarctl import weights
from cifarctl.data import Source
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
    assert done.out == f"{file}: 1000 latents of 64 floats\n"
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
