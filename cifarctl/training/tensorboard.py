"""TensorBoard's events in a run's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cifarctl.caches import room_for_caches
from cifarctl.files import to_json
from cifarctl.training.checkpoint import Record
from cifarctl.training.run_files import LOG_SUFFIX

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLog:
    """TensorBoard events in a run's folder: scalars after every epoch, pictures at the end.

    hparams: what the run was started with, by name, by which TensorBoard compares runs.
    """

    def __init__(self, folder: Path, hparams: Mapping[str, Any]) -> None:
        self._folder = folder
        self._hparams = {
            name: value if isinstance(value, int | float | str) else to_json(value)
            for name, value in hparams.items()
            if value is not None
        }
        self._writer: SummaryWriter | None = None

    def _opened(self, epoch: int) -> "SummaryWriter":
        """The writer, which the first epoch opens: its import takes a second, for which no training step should wait.
        What an interrupted run logged of this epoch and later ones is dropped.
        """
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder), purge_step=epoch, filename_suffix=LOG_SUFFIX)
            self._log_hparams(end=False)
        return self._writer

    def _log_hparams(self, *, end: bool) -> None:
        from torch.utils.tensorboard.summary import hparams

        # Not `add_hparams`, which makes a folder of its own. The summary left out would list one run's columns alone.
        _, start, finish = hparams(self._hparams, {})
        assert self._writer is not None
        self._writer._get_file_writer().add_summary(finish if end else start)

    def log_end(self, split: str, metrics: Mapping[str, Any], epoch: int) -> None:
        """The run is complete, and has these metrics on the split; those that are no numbers are left out."""
        writer = self._opened(epoch)
        group = "test" if split == "test" else f"{split}_at_the_end"  # `val` has a value per epoch already
        for name, value in metrics.items():
            if isinstance(value, int | float):
                writer.add_scalar(f"{group}/{name}", value, epoch)
        self._log_hparams(end=True)

    def log_scalars(self, record: Record) -> None:
        """One epoch's record; names become groups: `val_loss` is `val/loss`."""
        writer, epoch = self._opened(int(record["epoch"])), int(record["epoch"])
        for name, value in record.items():
            if name not in ("epoch", "step"):
                group, _, rest = name.partition("_")
                tag = f"{group}/{rest}" if group in ("train", "val") else name
                writer.add_scalar(tag, value, epoch)
        writer.flush()

    def log_images(self, tag: str, images: Tensor, columns: int, epoch: int) -> None:
        """A grid of images, uint8 or float in [0, 1], (N, 3, H, W), row by row."""
        with room_for_caches(self._folder):
            from torchvision.utils import make_grid

        floats = images.float() / 255 if images.dtype == torch.uint8 else images
        self._opened(epoch).add_image(tag, make_grid(floats, nrow=columns), epoch)

    def log_picture(self, tag: str, picture: Path, epoch: int) -> None:
        """A PNG file, as it is."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(picture, formats=["PNG"]) as image:
            size = {"width": image.width, "height": image.height, "colorspace": len(image.getbands())}
        value = Summary.Value(tag=tag, image=Summary.Image(encoded_image_string=picture.read_bytes(), **size))
        # `add_image` takes pixels, and would encode them again.
        self._opened(epoch)._get_file_writer().add_summary(Summary(value=[value]), epoch)

    def close(self) -> None:
        """Write what is pending."""
        if self._writer:
            self._writer.close()
