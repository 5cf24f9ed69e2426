"""`evaluate --unfamiliar`: how well typicality tells a split's images from others that show none of the classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarctl.errors import ImageError, UsageError
from cifarctl.wording import counted

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cifarctl.data.dataset import Dataset
    from cifarctl.models.base import Classifier


def check_unfamiliar(folder: Path, models: Sequence[Path]) -> None:
    """Raise UsageError unless `folder` is one, and every model has a score of how familiar an image looks."""
    from cifarctl import weights

    if not folder.is_dir():
        raise UsageError(f"--unfamiliar {folder}: no folder of that name")
    for path in models:
        if not weights.has_typicality(path):
            is_classifier = weights.read_info(path).kind == "classifier"
            hint = HOW_TO_GET_IT if is_classifier else "classifiers alone have one"
            raise UsageError(f"--unfamiliar: {path} {NO_SCORE}", hint=hint)


LOWEST_FRACTION = 0.1
NO_SCORE = "has no typicality score"
HOW_TO_GET_IT = "train-clf fits one if there are 50 validation images: train again with --val-size 50"


def read_unfamiliar(folder: Path, device: "torch.device") -> tuple["Dataset", list[str]]:
    """All images under `folder`, of no class, and remarks on files that were left out. Raises UsageError if no image
    can be read.
    """
    import numpy as np
    import torch

    from cifarctl.data.dataset import Dataset
    from cifarctl.data.images import find_images, read_images

    files = find_images(folder)
    read = list(read_images(files))
    paths, images = [], []
    errors = []
    for path, image in read:
        if isinstance(image, ImageError):
            errors.append(str(image))
        else:
            paths.append(str(path))
            images.append(image)
    if not images:
        raise UsageError(f"--unfamiliar {folder}: no images in it" + (f" ({errors[0]})" if errors else ""))
    remarks = [f"--unfamiliar {folder}: {remark}" for remark in [files.describe_ignored()] if remark]
    if errors:
        remarks.append(f"--unfamiliar {folder}: {len(errors):,} of {len(read):,} images left out: {errors[0]}")
    labels = torch.full((len(images),), -1)
    return Dataset(torch.from_numpy(np.stack(images)), labels, (), tuple(paths)).to(device), remarks


def remarks_on_unfamiliar(images: "Dataset", split: "Dataset", familiar: "Tensor") -> list[str]:
    """Why the figures say little, in words. split: what the images are to be told from. familiar: its typicality."""
    from cifarctl.data.overlap import copies_of_pixels

    remarks = []
    if same := len(copies_of_pixels(images, split)):
        remarks.append(f"--unfamiliar: {same:,} of {counted(len(images), 'image')} are also in the split")
    # Nothing is below the least typical of the validation images, so these cannot be told from anything.
    if (lowest := (familiar == 0).double().mean().item()) > LOWEST_FRACTION:
        remarks.append(
            f"{lowest:.0%} of the split's images have a typicality of 0, as unfamiliar ones have: they differ from the "
            "training images too, so typicality tells little here"
        )
    return remarks


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
