"""The weights that come with the package: small, documented, and the default wherever a model may be left out."""

import json
from pathlib import Path

import pytest

from cifarctl import models, weights

from support import Cifarctl

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def empty_home(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has just installed the package and has no network."""
    nowhere = "http://127.0.0.1:9"
    return {"HOME": str(tmp_path), "CIFARCTL_DATA_DIR": "", "http_proxy": nowhere, "https_proxy": nowhere}


@pytest.mark.parametrize(
    ("kind", "command", "score"),
    [
        (
            "classifier",
            "cifarctl train-clf --recipe max --teacher runs/max --set model.widths=96,288,320",
            "{accuracy:.2%}",
        ),
        ("autoencoder", "cifarctl train-ae --recipe best", "{psnr:.2f} dB"),
    ],
)
def test_a_model_is_small_and_says_how_it_was_made(kind: models.Kind, command: str, score: str) -> None:
    path = weights.resolve(None, kind)
    assert path.stat().st_size <= 10_000_000
    assert weights.resolve(Path(kind), "classifier") == path
    info = weights.read_info(path)
    assert list(info.classes) == (CLASSES if kind == "classifier" else [])
    assert info.training["command"] == command
    assert f"`{command}`" in (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert len(info.training["commit"]) == 40
    assert len(info.data["archive_sha256"]) == 64
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    _, _, cards = readme.partition("### The pretrained models")
    assert info.training["commit"] in cards, "the model card names another commit"
    assert score.format(**info.metrics["test"]) in cards, "the model card gives another score"


def test_predict_needs_nothing_but_the_package(
    installed: Cifarctl, photos: Path, empty_home: dict[str, str], tmp_path: Path
) -> None:
    photo = next(photos.iterdir())
    done = installed("predict", photo, env=empty_home)
    assert done.code == 0
    assert json.loads(done.out)["label"] in CLASSES
    assert list(tmp_path.iterdir()) == [], "it wrote into the home folder"


@pytest.mark.thorough
def test_reconstruct_needs_nothing_but_the_package(
    installed: Cifarctl, photos: Path, empty_home: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    done = installed("reconstruct", next(photos.iterdir()), "-o", out, "--json", env=empty_home)
    assert done.code == 0
    assert done.json["psnr_image_mean"] > 15
    assert out.stat().st_size > 10_000
