"""One run's folder: what is in it, whether it may be written, and how a new run takes the place of an old one."""

import errno
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarctl import weights
from cifarctl.errors import RunDirError
from cifarctl.files import move_file, remove_temporary, to_json, write_text
from cifarctl.names import is_text
from cifarctl.training.checkpoint import Checkpoint, Record
from cifarctl.training.run_files import EVENTS, FILES, check_ours, is_log_of_ours
from cifarctl.training.run_lock import RunLock, check_unused

if TYPE_CHECKING:
    from cifarctl.training.loop import EpochDone

REPAIR = "bring the file back as the run wrote it, or train anew with `overwrite`"
# In a run's folder: the run that will replace it; and that run while its files take the places of the old one's.
_STAGED, _WHOLE = ".cifarctl-new", ".cifarctl-new-whole"  # names that nobody else gives


class RunDir:
    """The files of one run. Opening it makes the folder and locks it, or raises RunDirError if it must not be touched.

    A run that replaces another lies in a folder inside that one's until its first epoch is saved (`take_place`): if it
    fails before that, the old run is as it was.

    path: the run's folder. numbered: if there is such a folder, another is made: PATH-2, PATH-3, …
    """

    def __init__(self, path: Path, *, resume: bool = False, overwrite: bool = False, numbered: bool = False) -> None:
        _check_name(path)
        self.path = path
        self._is_new = self._has_staged_anew = False
        self._lock: RunLock | None = None
        self.checkpoint = Checkpoint(path)
        try:
            self._is_new = self._make(numbered=numbered)
            self._lock = RunLock(self.path)
            if resume:
                self.check_resumable(self.path)
            else:
                self.check_free(self.path, overwrite=overwrite)
            if (self.path / _WHOLE).exists():
                self._move_whole()
            self._replaced = _contents(self.path)
            if resume:
                is_staged = _has_staged(self.path)
            else:
                is_staged = any(file.name != "config.json" for file in self._replaced)
                _remove_staged(self.path)
            self._name_files(self.path / _STAGED if is_staged else self.path)
            self._folder.mkdir(exist_ok=True)
            self._has_staged_anew = is_staged and not resume
            for folder in {self.path, self._folder}:
                remove_temporary(folder)  # what a killed process was writing
        except OSError as error:
            self.close()
            raise RunDirError(
                f"{self.path}: cannot be written ({error.strerror})", hint="`out` takes another"
            ) from None
        except BaseException:
            self.close()
            raise

    @property
    def has_lock(self) -> bool:
        """False if the file system has no locks, so that another process may use the folder too."""
        return self._lock is not None and self._lock.is_held

    @classmethod
    def opened(cls, path: Path) -> "RunDir":
        """A run's folder as another process has opened it. Touches nothing."""
        run = cls.__new__(cls)
        run.path, run._is_new, run._lock, run._replaced = path, False, None, []
        run.checkpoint = Checkpoint(path)
        run._name_files(next((path / name for name in (_WHOLE, _STAGED) if _is_run(path / name)), path))
        return run

    def close(self) -> None:
        """Let others use the folder. A run that was to replace another and has saved nothing is dropped, and so is a
        new folder without a file.
        """
        if not self._lock:
            return
        staged = Checkpoint(self.path / _STAGED / "checkpoint.safetensors")
        if self._has_staged_anew and not staged.exists():
            _remove_staged(self.path)
        self._lock.release()
        self._lock = None
        if self._is_new:
            _remove_empty(self.path)

    def _make(self, *, numbered: bool) -> bool:
        """Make the folder. True if it was not there."""
        base, number = self.path, 1
        while True:
            try:
                self.path.mkdir(parents=True)
                return True
            except FileExistsError:
                if not numbered:
                    if not self.path.is_dir():
                        raise RunDirError(f"{self.path}: a file, not a folder", hint="`out` takes a folder") from None
                    return False
                number += 1
                self.path = base.with_name(f"{base.name}-{number}")

    def _name_files(self, folder: Path) -> None:
        self._folder = folder
        self.model, self.last, self.config, self.metrics, self.summary = (
            folder / name
            for name in ("model.safetensors", "last.safetensors", "config.json", "metrics.jsonl", "summary.json")
        )
        self.checkpoint.path = folder / "checkpoint.safetensors"  # the training loop holds it

    @property
    def is_staged(self) -> bool:
        """True until a run that replaces another has taken its place."""
        return self._folder != self.path

    def take_place(self) -> None:
        """Replace the old run, now that the new one has weights to offer. Raises OSError.

        If the process is killed in between, `--resume` goes on with the new run and does the rest.
        """
        if not self.is_staged:
            return
        self._folder.replace(self.path / _WHOLE)
        for file in self._replaced:
            if not (self.path / _WHOLE / file.name).exists():
                file.unlink(missing_ok=True)
        self._move_whole()
        self._name_files(self.path)

    def _move_whole(self) -> None:
        # First of all: with it, the old run looks finished.
        (self.path / "summary.json").unlink(missing_ok=True)
        for name in sorted(FILES, key="config.json".__eq__):  # the configuration last: with it, the staged run ends
            if (self.path / _WHOLE / name).exists():
                move_file(self.path / _WHOLE / name, self.path / name)
        (self.path / _WHOLE).rmdir()

    @classmethod
    def check_free(cls, path: Path, *, overwrite: bool = False) -> None:
        """Raise RunDirError if a new run must not write to `path`. Leaves nothing behind.

        What has neither weights nor a checkpoint is no run, so it may be replaced without `overwrite`.
        """
        if path.exists() and not path.is_dir():
            raise RunDirError(f"{path}: a file, not a folder", hint="`out` takes a folder")
        check_ours(_contents(path))
        weights = [file for file in _contents(path) if file.suffix == ".safetensors"]
        if overwrite or not (weights or _has_staged(path)):
            return
        hint = "`overwrite` replaces it, `out` takes another"
        if _has_staged(path):
            raise RunDirError(
                f"{path}: already holds a run, and the start of one that is to replace it",
                hint=f"`resume` goes on with the new one, {hint}",
            )
        unfinished = cls._is_unfinished(path)
        raise RunDirError(
            f"{path}: already holds {'an unfinished' if unfinished else 'a'} run ({weights[0].name})",
            hint=f"`resume` goes on with it, {hint}" if unfinished else hint,
        )

    @staticmethod
    def _is_unfinished(path: Path) -> bool:
        """Whether a run was started at `path` that has not ended; it may have no checkpoint yet."""
        has_ended = all((path / name).exists() for name in ("model.safetensors", "summary.json"))
        has_checkpoint = Checkpoint(path / "checkpoint.safetensors").exists()
        return _has_staged(path) or has_checkpoint or ((path / "config.json").exists() and not has_ended)

    @classmethod
    def check_resumable(cls, path: Path) -> None:
        """Raise RunDirError if there is no run at `path` to go on with."""
        if not (_has_staged(path) or _is_run(path)):
            raise RunDirError(f"{path}: holds no run to resume")
        if cls.is_finished(path):
            raise RunDirError(
                f"{path}: this run has finished",
                hint="`init` takes it, and `out` another folder, to train it further; `overwrite` trains anew",
            )

    @classmethod
    def is_finished(cls, path: Path) -> bool:
        """Whether there is a run at `path`, and nothing is left of it to go on with."""
        return _is_run(path) and not cls._is_unfinished(path)

    @classmethod
    def is_resumable(cls, path: Path) -> bool:
        """Whether there is a run at `path` to go on with."""
        try:
            cls.check_resumable(path)
        except RunDirError:
            return False
        return True

    @staticmethod
    def check_unused(path: Path) -> None:
        """Raise RunDirError if a run cannot have this name, or another process uses the folder. Leaves nothing."""
        _check_name(path)
        check_unused(path)

    def check_checkpoint(self) -> None:
        """Raise RunDirError if the run had a checkpoint and it is gone: started anew, its epochs would be lost."""
        if not self.checkpoint.exists() and (self.metrics.exists() or self.last.exists()):
            raise RunDirError(
                f"{self.checkpoint.path}: missing, and the run has not finished",
                hint="bring it back, or train anew with `overwrite`",
            )

    def read_config(self) -> dict[str, Any]:
        """The options that the run was started with. Raises RunDirError."""
        return _read_config(self.config)

    def write_json(self, path: Path, value: Mapping[str, Any]) -> None:
        """Replace one of the folder's JSON files."""
        write_text(path, to_json(value, indent=2) + "\n")

    def write_history(self, history: list[Record]) -> None:
        """Replace `metrics.jsonl`: one line an epoch."""
        write_text(self.metrics, "".join(to_json(record) + "\n" for record in history))


def _contents(path: Path) -> list[Path]:
    """The files in a run's folder that a new run would replace."""
    files = [path / name for name in FILES if (path / name).exists()]
    return files + [log for log in path.glob(EVENTS) if is_log_of_ours(log)]


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").exists()


def _has_staged(path: Path) -> bool:
    return _is_run(path / _STAGED) or _is_run(path / _WHOLE)


def _remove_staged(path: Path) -> None:
    for name in FILES:
        (path / _STAGED / name).unlink(missing_ok=True)
    remove_temporary(path / _STAGED)
    _remove_empty(path / _STAGED)


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return


class EpochFiles:
    """What epochs leave in a run's folder: `metrics.jsonl`, `last.safetensors` and, of the best, `model.safetensors`.
    They are written when the checkpoint is, so that they agree with it.
    """

    def __init__(self, run: RunDir, info: weights.ModelInfo) -> None:
        self._run, self._info = run, info
        self._last: EpochDone | None = None
        self._written_best = -1  # whatever a process that was killed has left there

    def add(self, epoch: "EpochDone") -> None:
        """Note one more epoch, and write the files if it is in the checkpoint. Raises OSError."""
        self._last = epoch
        if epoch.is_saved:
            self.write()

    def write(self) -> None:
        """Write the files of the epochs since the last time. Raises OSError."""
        if not self._last:
            return
        self._run.write_history(self._last.history)
        weights.save(self._run.last, self._last.weights, self._info)
        if self._last.best_epoch != self._written_best:
            weights.save(self._run.model, self._last.best, self._info)
            self._written_best = self._last.best_epoch
        self._run.take_place()
        self._last = None


def read_config_of(model: Path) -> dict[str, Any]:
    """The options of the run that a weights file in a run's folder is of, which another run may be about to replace.

    Raises RunDirError.
    """
    return _read_config(_of_same_run(model, "config.json"))


def read_history(model: Path) -> list[Record]:
    """The epochs of the run that a weights file lies in, or none where it lies in no run's folder.

    Raises RunDirError where they cannot be read.
    """
    path = _of_same_run(model, "metrics.jsonl")
    if model.name not in FILES or not path.is_file():
        return []
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{name: _number(value) for name, value in record.items()} for record in records]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunDirError(f"{path}: cannot be read ({error})") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunDirError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise RunDirError(f"{path}: no JSON object", hint=REPAIR)
    return config


def _of_same_run(model: Path, name: str) -> Path:
    """The file `name` of the run that `model` is of. If a process was killed while one run took another's place, its
    weights may be there already, and this file not.
    """
    whole = model.parent / _WHOLE
    has_moved = not (whole / model.name).exists()
    return whole / name if has_moved and (whole / name).exists() else model.parent / name


def _check_name(path: Path) -> None:
    """Raise RunDirError if a run cannot be written to a folder of this name, or not be read from there."""
    hint = "`out` takes another folder"
    if not is_text(str(path)):
        raise RunDirError(f"{path}: not UTF-8, so that its weights could not be read", hint=hint)
    try:
        is_link = stat.S_ISLNK(path.lstat().st_mode)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise RunDirError(f"{path}: {error.strerror}", hint=hint) from None
        return  # there is none yet
    if is_link and not path.exists():
        raise RunDirError(f"{path}: a link to {path.readlink()}, which does not exist", hint=f"make it, or {hint}")


def _number(value: object) -> float | int:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value
