"""`evaluate --unfamiliar`: how well typicality tells a split's images from others that show none of the classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarctl.errors import ImageError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cifarctl.models.base import Classifier


def check_unfamiliar(folder: Path, models: Sequence[Path]) -> None:
    """Raise UsageError unless `folder` is one, and every model has a score of how familiar an image looks."""
    from cifarctl import weights

    if not folder.is_dir():
        raise UsageError(f"--unfamiliar {folder}: no folder of that name")
    for path in models:
        if not weights.has_typicality(path):
            raise UsageError(f"--unfamiliar: {path} {NO_SCORE}", hint=HOW_TO_GET_IT)


NO_SCORE = "has no typicality score"
HOW_TO_GET_IT = "train-clf fits one if there are 50 validation images: train again with --val-size 50"


def read_unfamiliar(folder: Path, device: "torch.device") -> tuple["Tensor", list[str]]:
    """All images under `folder`, uint8 (N, 3, 32, 32), and remarks on files that were left out. Raises UsageError if no
    image can be read.
    """
    import numpy as np
    import torch

    from cifarctl.data.images import find_images, read_images

    files = find_images(folder)
    read = [image for _, image in read_images(files)]
    images = [image for image in read if not isinstance(image, ImageError)]
    errors = [str(image) for image in read if isinstance(image, ImageError)]
    if not images:
        raise UsageError(f"--unfamiliar {folder}: no images in it" + (f" ({errors[0]})" if errors else ""))
    remarks = [f"--unfamiliar {folder}: {remark}" for remark in [files.describe_ignored()] if remark]
    if errors:
        remarks.append(f"--unfamiliar {folder}: {len(errors):,} of {len(read):,} images left out: {errors[0]}")
    return torch.from_numpy(np.stack(images)).to(device), remarks


def measure_unfamiliar(model: "Classifier", familiar: "Tensor", images: "Tensor") -> dict[str, Any]:
    """What JSON shows. familiar: the typicality of the split's images, float (N,). images: uint8 (M, 3, 32, 32)."""
    from cifarctl.inference import answer
    from cifarctl.typicality import auroc, false_positives

    unfamiliar = answer(model, images).typicality
    assert unfamiliar is not None
    return {
        "n": len(images),
        "auroc": auroc(familiar, unfamiliar),
        "false_positives_at_95": false_positives(familiar, unfamiliar),
    }
