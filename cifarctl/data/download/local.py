"""Archives and unpacked folders that are on this machine already: given by the user, or left by other tools."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cifarctl.data.archive import Archive


def common_places(data_folder: Path) -> tuple[Path, ...]:
    """Where tools and people keep CIFAR: torchvision's tutorials in ./data, Keras in ~/.keras/datasets."""
    places = [data_folder, Path(), Path("data"), Path("datasets")]
    with suppress(RuntimeError):  # a user without a home
        home = Path.home()
        places += [home / "data", home / "datasets", home / ".keras" / "datasets"]
    return tuple({place.resolve(): place for place in reversed(places)}.values())[::-1]


def find_in(archive: Archive, folder: Path) -> Iterator[Path]:
    """The archive's possible copies in `folder`: files of its name, and folders with all its files, itself included.

    They are not verified. What cannot be looked at is not there.
    """
    for name in archive.file_names:
        if _is_file(folder / name):
            yield folder / name
    # Keras 3 unpacks into a folder of its own.
    for candidate in (folder, folder / archive.folder, folder / f"{archive.folder}-target" / archive.folder):
        if all(_is_file(candidate / member) for member in archive.members):
            yield candidate


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that is another user's
        return False
