"""One run's folder: what is in it, whether it may be written, and the TensorBoard events."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cifarctl import weights
from cifarctl.errors import RunDirError
from cifarctl.files import remove_temporary, write_text
from cifarctl.training.checkpoint import Record

if TYPE_CHECKING:
    from cifarctl.training.loop import EpochDone


class RunDir:
    """The files of one run. Opening it makes the folder, or raises RunDirError where it must not be touched."""

    _FILES = (
        "model.safetensors",
        "last.safetensors",
        "checkpoint.safetensors",
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
        "confusion.png",
        "reconstructions.png",
    )

    def __init__(self, path: Path, *, resume: bool = False, overwrite: bool = False) -> None:
        self._name_files(path)
        if resume:
            self._check_resumable()
        else:
            self.check_free(path, overwrite=overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
            remove_temporary(path)  # what a killed process was writing
            if not resume:
                for stale in (*self._taken(path), *path.glob("events.out.tfevents.*")):
                    stale.unlink()
        except OSError as error:
            raise RunDirError(f"{path}: cannot be written ({error.strerror})", hint="--out takes another") from None

    @classmethod
    def opened(cls, path: Path) -> "RunDir":
        """A run's folder as another process has opened it. Touches nothing."""
        run = cls.__new__(cls)
        run._name_files(path)
        return run

    def _name_files(self, path: Path) -> None:
        self.path = path
        self.model, self.last, self.checkpoint, self.config, self.metrics, self.summary = (
            path / name for name in self._FILES[:6]
        )

    @classmethod
    def check_free(cls, path: Path, *, overwrite: bool = False) -> None:
        """Raise RunDirError where a new run must not write to `path`. Touches nothing."""
        if path.exists() and not path.is_dir():
            raise RunDirError(f"{path}: a file, not a folder", hint="--out takes a folder")
        taken = cls._taken(path)
        if taken and not overwrite:
            unfinished = cls._is_unfinished(path)
            hint = "--overwrite replaces it, --out takes another"
            raise RunDirError(
                f"{path}: already holds {'an unfinished' if unfinished else 'a'} run ({taken[0].name})",
                hint=f"--resume goes on with it, {hint}" if unfinished else hint,
            )

    @classmethod
    def _taken(cls, path: Path) -> list[Path]:
        return [path / name for name in cls._FILES if (path / name).exists()]

    @staticmethod
    def _is_unfinished(path: Path) -> bool:
        """Whether a run was started at `path` that has not ended; it may have no checkpoint yet."""
        has_ended = all((path / name).exists() for name in ("model.safetensors", "summary.json"))
        return (path / "checkpoint.safetensors").exists() or ((path / "config.json").exists() and not has_ended)

    def _check_resumable(self) -> None:
        if not self.config.exists():
            raise RunDirError(f"{self.path}: holds no run to resume")
        if not self._is_unfinished(self.path):
            raise RunDirError(f"{self.path}: this run has finished", hint="--overwrite trains anew")

    def read_config(self) -> dict[str, Any]:
        """The options that the run was started with. Raises RunDirError."""
        try:
            config = json.loads(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunDirError(f"{self.config}: cannot be read ({error})") from None
        if not isinstance(config, dict):
            raise RunDirError(f"{self.config}: no JSON object")
        return config

    def write_json(self, path: Path, value: dict[str, Any]) -> None:
        """Replace one of the folder's JSON files."""
        write_text(path, json.dumps(value, indent=2) + "\n")

    def write_history(self, history: list[Record]) -> None:
        """Replace `metrics.jsonl`: one line an epoch."""
        write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in history))


class EpochFiles:
    """What epochs leave in a run's folder: `metrics.jsonl`, `last.safetensors` and, of the best, `model.safetensors`.
    They are written when the checkpoint is, so that they agree with it.
    """

    def __init__(self, run: RunDir, info: weights.ModelInfo) -> None:
        self._run, self._info = run, info
        self._last: EpochDone | None = None
        self._best: EpochDone | None = None

    def add(self, epoch: "EpochDone") -> None:
        """Note one more epoch, and write the files if it is in the checkpoint. Raises OSError."""
        self._last = epoch
        if epoch.is_best:
            self._best = epoch
        if epoch.is_saved:
            self.write()

    def write(self) -> None:
        """Write the files of the epochs since the last time. Raises OSError."""
        if self._last:
            self._run.write_history(self._last.history)
            weights.save(self._run.last, self._last.weights, self._info)
        if self._best:
            weights.save(self._run.model, self._best.weights, self._info)
        self._last = self._best = None


def read_history(model: Path) -> list[Record]:
    """The epochs of the run that a weights file lies in, or none where it lies in no run's folder.

    Raises RunDirError where they cannot be read.
    """
    path = model.parent / "metrics.jsonl"
    if model.name not in RunDir._FILES or not path.is_file():
        return []
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{name: float(value) for name, value in record.items()} for record in records]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunDirError(f"{path}: cannot be read ({error})") from None


class TensorBoardLog:
    """TensorBoard events in a run's folder: scalars after every epoch, pictures at the end."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        # Here, since the import takes a second that the first training step should not wait for.
        from torch.utils.tensorboard import SummaryWriter

        # A resumed run drops what an earlier one logged after its last checkpoint.
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def log_scalars(self, record: Record) -> None:
        """One epoch's record; names become groups: `val_loss` is `val/loss`."""
        for name, value in record.items():
            if name not in ("epoch", "step"):
                group, _, rest = name.partition("_")
                tag = f"{group}/{rest}" if group in ("train", "val") else name
                self._writer.add_scalar(tag, value, record["epoch"])
        self._writer.flush()

    def log_images(self, tag: str, images: Tensor, columns: int, epoch: int) -> None:
        """A grid of images, uint8 or float in [0, 1], (N, 3, H, W), row by row."""
        from torchvision.utils import make_grid

        floats = images.float() / 255 if images.dtype == torch.uint8 else images
        self._writer.add_image(tag, make_grid(floats, nrow=columns), epoch)

    def log_picture(self, tag: str, picture: Path, epoch: int) -> None:
        """A PNG file, as it is."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(picture, formats=["PNG"]) as image:
            size = {"width": image.width, "height": image.height, "colorspace": len(image.getbands())}
        value = Summary.Value(tag=tag, image=Summary.Image(encoded_image_string=picture.read_bytes(), **size))
        # `add_image` takes pixels, and would encode them again.
        self._writer._get_file_writer().add_summary(Summary(value=[value]), epoch)

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()
