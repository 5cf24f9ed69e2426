"""The weights that come with the package: small, documented, and the default wherever a model may be left out."""

import json
from pathlib import Path

import pytest

from cifarctl import weights

from support import Cifarctl

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def empty_home(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has just installed the package and has no network."""
    nowhere = "http://127.0.0.1:9"
    return {"HOME": str(tmp_path), "CIFARCTL_DATA_DIR": "", "http_proxy": nowhere, "https_proxy": nowhere}


def test_the_classifier_is_small_and_says_how_it_was_made() -> None:
    path = weights.resolve(None, "classifier")
    assert path.stat().st_size <= 10_000_000
    info = weights.read_info(path)
    assert list(info.classes) == CLASSES
    assert info.training["command"] == "cifarctl train-clf --recipe best"
    assert len(info.training["commit"]) == 40
    assert len(info.data["archive_sha256"]) == 64
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert info.training["commit"] in readme, "the model card names another commit"
    assert f"{info.metrics['test']['accuracy']:.2%}" in readme, "the model card gives another accuracy"


def test_predict_needs_nothing_but_the_package(
    installed: Cifarctl, photos: Path, empty_home: dict[str, str], tmp_path: Path
) -> None:
    photo = next(photos.iterdir())
    done = installed("predict", photo, env=empty_home)
    assert done.code == 0
    assert json.loads(done.out)["label"] in CLASSES
    assert list(tmp_path.iterdir()) == [], "it wrote into the home folder"
