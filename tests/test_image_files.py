"""What is an image in a folder, by its name; and what is said of the rest."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from cifarctl.data.image_formats import FORMAT_OF_SUFFIX, FORMATS
from cifarctl.data.images import expand, find_images, read_images
from cifarctl.errors import ImageError

from support import Cifarctl


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found_in(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in find_images(folder)]


def test_the_suffixes_are_those_that_pillow_registers_for_the_formats() -> None:
    Image.init()
    registered = {suffix for suffix, format in Image.registered_extensions().items() if format in FORMATS}
    assert registered <= set(FORMAT_OF_SUFFIX)
    assert set(FORMAT_OF_SUFFIX) - registered <= {".avif", ".avifs", ".jpc", ".j2c", ".pfm", ".qoi"}  # later Pillows'


def test_hidden_files_and_folders_are_passed_over_at_every_level_and_the_rest_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jfif", ".b.png", "._a.jfif", "notes.txt", "README", "c/x.TXT", "c/d.avif")
    touch(tmp_path, ".ipynb_checkpoints/a.png", "__MACOSX/a.png", "c/__MACOSX/._d.avif", "c/.git/x.txt", "@eaDir/a.png")
    images = find_images(tmp_path)
    assert [path.name for path in images] == ["a.jfif", "d.avif"]
    assert images.ignored == {".txt": 2, "": 1}
    assert images.describe_ignored() == "3 other files ignored: .txt, no suffix"
    assert list(images) == list(images)
    assert images.ignored.total() == 3


def test_a_hidden_folder_that_is_named_is_searched(tmp_path: Path) -> None:
    touch(tmp_path, ".photos/a.png")
    assert found_in(tmp_path / ".photos") == ["a.png"]


@pytest.mark.needs("POSIX")
def test_links_to_folders_are_followed_once_each_after_all_else(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    touch(root, "z/1.png")
    touch(elsewhere, "2.png", "deep/3.png")
    (root / "a").symlink_to(elsewhere)
    (root / "b").symlink_to(elsewhere)
    (root / "c").symlink_to(root / "z")
    (elsewhere / "deep" / "back").symlink_to(root)
    (root / "up").symlink_to(tmp_path)  # this would lead out of the folder
    (root / "circle").symlink_to("circle")
    assert found_in(root) == ["z/1.png", "a/2.png", "a/deep/3.png"]


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that everybody may enter, and this process as a user who is not root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        if os.getuid() == 0:
            os.seteuid(0)
        for path in folder.iterdir():
            path.chmod(0o755)


@pytest.mark.needs("POSIX")
def test_a_folder_that_cannot_be_listed_is_an_error_like_a_file_that_cannot_be_read(nobody: Path) -> None:
    touch(nobody, "a/1.png", "locked/2.png")
    Image.new("RGB", (8, 8)).save(nobody / "a" / "1.png")
    (nobody / "locked").chmod(0o000)
    if os.getuid() == 0:
        os.seteuid(65534)
    answers = dict(read_images(expand([nobody, nobody / "locked"])))
    assert list(answers) == [nobody / "a" / "1.png", nobody / "locked"]
    assert str(answers[nobody / "locked"]) == "cannot be read: Permission denied"
    assert not isinstance(answers[nobody / "a" / "1.png"], ImageError)


@pytest.mark.parametrize("command", ["predict", "reconstruct"])
def test_every_command_says_what_it_ignores_and_fails_on_a_folder_with_nothing_for_it(
    cifarctl: Cifarctl,
    classifier_run: Path,
    autoencoder_run: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = classifier_run if command == "predict" else autoencoder_run
    touch(tmp_path, "some/notes.txt", "none/notes.txt", "none/.hidden.png")
    (tmp_path / "some" / "photo.png").write_bytes(next(photos.iterdir()).read_bytes())
    some = cifarctl(command, "some", "-m", model)
    assert some.code == 0
    assert some.err == "1 other file ignored: .txt\n"
    assert cifarctl(command, "some", "-m", model, "--quiet").err == ""
    none = cifarctl(command, "none", "-m", model)
    assert none.code == 1
    assert none.error == "error: none: no images in it"
    both = cifarctl(command, "some", "none", "-m", model)
    assert both.code == 1
    assert both.error == "error: none: no images in it"
    assert both.out
