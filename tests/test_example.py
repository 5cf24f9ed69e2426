"""`example`: the picture that comes with the package, so that a newcomer has one."""

from pathlib import Path

import pytest
from PIL import Image

import cifarctl as library
from cifarctl.data.images import EXAMPLE

from support import Cifarctl


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder: no file there has that name."""
    monkeypatch.chdir(tmp_path)


def test_predict_answers_it_as_a_cat(cifarctl: Cifarctl) -> None:
    done = cifarctl("predict", "example", "--format", "json")
    assert done.code == 0
    (answer,) = done.json
    assert (answer["path"], answer["label"]) == ("example", "cat")
    assert answer["confidence"] > 0.5


def test_reconstruct_draws_it(cifarctl: Cifarctl, tmp_path: Path) -> None:
    done = cifarctl("reconstruct", "example", "--out", tmp_path / "grid.png", "--json")
    assert [image["name"] for image in done.json["images"]] == ["example"]
    assert done.json["psnr_image_mean"] > 20
    assert (tmp_path / "grid.png").exists()


def test_python_programs_have_it_too() -> None:
    model = library.load()
    assert isinstance(model, library.LoadedClassifier)
    (answer,) = model.predict(["example"])
    assert answer.label == "cat"


def test_a_file_or_folder_of_that_name_comes_first(cifarctl: Cifarctl, tmp_path: Path) -> None:
    folder = tmp_path / "example"
    folder.mkdir()
    assert cifarctl("predict", "example", "--format", "json").json == []
    folder.rmdir()
    (tmp_path / "example").write_text("no image")
    (answer,) = cifarctl("predict", "example", "--format", "json").json
    assert answer["error"].startswith("not an image")


def test_other_names_that_are_missing_stay_missing(cifarctl: Cifarctl) -> None:
    for name in ("examples", "folder/example", "example.jpg", "./example"):
        done = cifarctl("predict", name, "--format", "json")
        assert done.code == 1
        assert done.json == [{"path": str(Path(name)), "error": "no such file"}]


def test_a_list_names_files_alone(installed: Cifarctl) -> None:
    done = installed("predict", "-", stdin=b"example\n")
    assert done.code == 1
    assert done.json == {"path": "example", "error": "no such file"}


@pytest.mark.needs("POSIX")
def test_a_link_of_that_name_that_leads_nowhere_is_no_picture(cifarctl: Cifarctl, tmp_path: Path) -> None:
    (tmp_path / "example").symlink_to(tmp_path / "nowhere")
    assert cifarctl("predict", "example", "--format", "json").json == [{"path": "example", "error": "no such file"}]


def test_it_is_small_and_larger_than_what_the_models_see() -> None:
    assert EXAMPLE.stat().st_size < 40_000
    with Image.open(EXAMPLE) as image:
        assert min(image.size) > 100
