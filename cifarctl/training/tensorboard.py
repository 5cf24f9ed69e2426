"""TensorBoard's events in a run's folder."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cifarctl.training.checkpoint import Record

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLog:
    """TensorBoard events in a run's folder: scalars after every epoch, pictures at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def _opened(self, epoch: int) -> "SummaryWriter":
        """The writer, which the first epoch opens: its import takes a second, for which no training step should wait.
        What an interrupted run logged of this epoch and later ones is dropped.
        """
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder), purge_step=epoch)
        return self._writer

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
