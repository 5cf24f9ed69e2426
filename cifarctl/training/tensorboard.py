"""TensorBoard's events in a run's folder."""

from pathlib import Path

import torch
from torch import Tensor

from cifarctl.training.checkpoint import Record


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
