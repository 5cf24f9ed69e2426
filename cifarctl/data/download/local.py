"""Find archives and unpacked folders on this machine, which users name or other tools have left."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cifarctl.data.archive import Archive


def common_places(data_folder: Path) -> tuple[Path, ...]:
    """Folders where tools and people keep CIFAR: torchvision's tutorials in ./data, Keras in ~/.keras/datasets."""
    places = [data_folder, Path(), Path("data"), Path("datasets")]
    with suppress(RuntimeError):  # a user without a home
        home = Path.home()
        places += [home / "data", home / "datasets", home / ".keras" / "datasets"]
    return tuple({place.resolve(): place for place in reversed(places)}.values())[::-1]


def find_in(archive: Archive, folder: Path) -> Iterator[Path]:
    """Possible copies of the archive in `folder`: files of its name, and folders with all its files, `folder` included.

    They are not verified. Files that cannot be accessed are ignored.
    """
    for name in archive.file_names:
        if _is_file(folder / name):
            yield folder / name
    for candidate in _folders(archive, folder):
        if all(_is_file(candidate / member) for member in archive.members):
            yield candidate


def why_none(archive: Archive, folder: Path) -> str:
    """Why `find_in` finds nothing in the folder, for an error message."""
    for candidate in _folders(archive, folder):
        if _is_denied(candidate):
            return f"{candidate}: permission denied"
        missing = [member for member in archive.members if not _is_file(candidate / member)]
        if len(missing) < len(archive.members):
            return f"no file {missing[0]} in {candidate}"
    return f"no {archive.folder} and no {archive.file_names[0]} in this folder"


def _folders(archive: Archive, folder: Path) -> tuple[Path, ...]:
    """Folders that may be an unpacked archive. Keras 3 unpacks into a folder of its own."""
    return folder, folder / archive.folder, folder / f"{archive.folder}-target" / archive.folder


def _is_denied(folder: Path) -> bool:
    try:
        os.stat(os.path.join(folder, "."))  # noqa: PTH116, PTH118 (a Path drops the dot)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # for example in another user's folder
        return False
