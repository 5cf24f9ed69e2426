"""The names of a run's files, and whether a file of such a name is one of ours: others' are never replaced."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cifarctl.errors import RunDirError

FILES = (
    "model.safetensors",
    "last.safetensors",
    "checkpoint.safetensors",
    "previous-checkpoint.safetensors",
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "curves.png",
    "confusion.png",
    "reconstructions.png",
)
EVENTS = "events.out.tfevents.*"
LOG_SUFFIX = ".cifarctl"
# Logs of version 0.2 have no such suffix, but all of these names of scalars.
_SCALARS = (b"train/loss", b"val/loss", b"learning_rate", b"images_per_second", b"seconds")
# What of a JSON file's keys, or of a safetensors file's metadata, tells ours.
_KEYS = {
    "config.json": {"options", "recipe"},
    "summary.json": {"run", "model", "kind", "test"},
    "metrics.jsonl": {"epoch", "step", "seconds", "val_loss"},
}
_METADATA = ({"format", "position"}, {"cifarctl_version", "kind", "model"})
_HEADER_BYTES = 100_000_000  # the most that safetensors accepts


def check_ours(files: Iterable[Path]) -> None:
    """Raise RunDirError if one of `files`, which have names of a run's files, is not of a cifarctl run.

    One that says nothing of where it comes from, such as a picture or a damaged file, counts as ours if another one is.
    """
    verdicts = {file: is_ours(file) for file in files}
    unsure = None if True in verdicts.values() else next((file for file in verdicts if verdicts[file] is None), None)
    if foreign := next((file for file in verdicts if verdicts[file] is False), unsure):
        raise RunDirError(
            f"{foreign}: not of a cifarctl run, and a run in this folder would replace it",
            hint="`out` takes another folder",
        )


def is_log_of_ours(path: Path) -> bool:
    """Whether TensorBoard events are a run's."""
    if path.name.endswith(LOG_SUFFIX):
        return True
    try:
        with path.open("rb") as file:
            start = file.read(1 << 20)
            return all(name in start for name in _SCALARS)
    except OSError:
        return False


def is_ours(path: Path) -> bool | None:
    """Whether a file with a name of a run's files is of a cifarctl run; None if nothing can be said."""
    try:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                names = set(json.loads(file.read(min(length, _HEADER_BYTES))).get("__metadata__") or ())
            return any(wanted <= names for wanted in _METADATA)
        if path.name not in _KEYS:
            return None
        text = path.read_text(encoding="utf-8")
        value: Any = json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text)
        return isinstance(value, dict) and _KEYS[path.name] <= value.keys()
    except (OSError, ValueError, IndexError, AttributeError, TypeError, RecursionError):
        return None
