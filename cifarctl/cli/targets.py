"""Where a command may write its results: not over what it reads, nor over a run's files."""

from collections.abc import Iterable
from pathlib import Path

from cifarctl.errors import UsageError
from cifarctl.training.run_files import FILES


def check_target(option: str, path: Path | None, inputs: Iterable[Path] = (), suffixes: tuple[str, ...] = ()) -> None:
    """Raise UsageError if the file `path` has none of these suffixes, if there are any, or if it is there already and
    is one of `inputs`, an image in a folder that is one, or a file of a run.
    """
    if path is None:
        return
    if suffixes and path.suffix.lower() not in suffixes:
        raise UsageError(f"{option} {path}: not a {suffixes[0]} file", hint=f"for example {path.stem}{suffixes[0]}")
    if not path.is_file():
        return
    from cifarctl.data.image_formats import FORMAT_OF_SUFFIX
    from cifarctl.data.own_runs import is_run

    place = path.resolve()
    is_image = path.suffix.lower() in FORMAT_OF_SUFFIX
    for each in map(Path.resolve, inputs):
        if place == each or (is_image and each in place.parents):
            raise UsageError(f"{option} {path}: it would replace one of the files that are read", hint=_ANOTHER)
    if path.name in FILES and is_run(path.parent):
        raise UsageError(f"{option} {path}: it would replace a file of the run {path.parent}", hint=_ANOTHER)


def check_run_folder(out: Path, data: Path) -> None:
    """Raise UsageError if `out` is a folder of images in `data`: a run's charts would be some of them."""
    from cifarctl.data.image_formats import FORMAT_OF_SUFFIX
    from cifarctl.data.own_runs import is_run

    if data.resolve() not in out.resolve().parents or not out.is_dir() or is_run(out):
        return
    if any(each.suffix.lower() in FORMAT_OF_SUFFIX for each in out.iterdir()):
        raise UsageError(f"--out {out}: it has pictures of --data {data}", hint="name another folder")


_ANOTHER = "name another file"
