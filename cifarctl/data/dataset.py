"""A data set in memory: two tensors and the names of the classes."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cifarctl.hardware import memory_format


@dataclass(frozen=True)
class Dataset:
    """Labelled images, all on one device.

    images: uint8 (N, 3, 32, 32), RGB. labels: int64 (N,), indices into `classes`. paths: each image's file, N of them;
    None if the images do not come from files of their own.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    paths: tuple[str, ...] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Dataset":
        """The same data on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def take(self, indices: Tensor) -> "Dataset":
        """The examples at `indices`, int64 (M,), in that order."""
        paths = None if self.paths is None else tuple(self.paths[i] for i in indices.tolist())
        return replace(self, images=self.images[indices], labels=self.labels[indices], paths=paths)


def to_float(images: Tensor) -> Tensor:
    """Pixels as float32 in [0, 1], in memory as `hardware.memory_format` says."""
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images
    return scaled.contiguous(memory_format=memory_format(images.device))
