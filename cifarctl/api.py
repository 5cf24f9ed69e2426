"""The commands' verbs for Python programs, as `cifarctl.load` and so on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifarctl import inference, weights
from cifarctl.data import Source
from cifarctl.data.archive import ARCHIVES
from cifarctl.data.download import install_official
from cifarctl.data.images import named_image, read_images
from cifarctl.errors import ImageError
from cifarctl.evaluation import (
    AutoencoderReport,
    ClassifierReport,
    evaluate_autoencoder,
    evaluate_classifier,
    require_classes,
)
from cifarctl.hardware import Device, select_device
from cifarctl.models.base import Autoencoder, Classifier
from cifarctl.training.options import TrainOptions
from cifarctl.training.session import Finished, train

PathLike = str | Path
Images = Tensor | NDArray[np.uint8] | NDArray[np.float32] | PathLike | Sequence[PathLike]
"""uint8, or float in [0, 1], (N, 3, 32, 32); or image files of any size."""


@dataclass(frozen=True)
class Prediction:
    """One image's answer. top: (label, confidence), the likeliest first."""

    label: str
    confidence: float
    top: tuple[tuple[str, float], ...]


class LoadedClassifier:
    """A classifier ready to use. module: the torch module. info: what its file says of it."""

    def __init__(self, module: Classifier, info: weights.ModelInfo) -> None:
        self.module, self.info = module, info

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self.info.classes

    def logits(self, images: Images, *, tta: bool = False) -> Tensor:
        """Images -> calibrated logits, float32 (N, classes), in full precision.

        tta: average over six views of each image that the model is unsure of. Raises ImageError on a file that cannot
        be read, ValueError on another shape.
        """
        return inference.predict_logits(self.module, _to_tensor(images), tta=tta)

    def predict(self, images: Images, *, top_k: int = 1, tta: bool = False) -> list[Prediction]:
        """The `top_k` likeliest classes of each image, with their probabilities. Arguments as for `logits`."""
        ranked = inference.rank(self.logits(images, tta=tta), self.classes, top_k)
        return [Prediction(*top[0], top=tuple(top)) for top in ranked]

    def export(self, path: PathLike) -> None:
        """Write the model for other runtimes: `images`, float32 (N, 3, 32, 32) in [0, 1] -> calibrated `logits`.

        A name in `.onnx` gets ONNX, whose metadata lists the classes (`pip install 'cifarctl[onnx]'`); one in `.pt2`
        PyTorch's own format. Raises UsageError, OSError.
        """
        from cifarctl.export import export

        export(Path(path), self.module, self.info, self.module.forward, (3, 32, 32), ("images", "logits"))


class LoadedAutoencoder:
    """An autoencoder ready to use. module: the torch module. info: what its file says of it."""

    def __init__(self, module: Autoencoder, info: weights.ModelInfo) -> None:
        self.module, self.info = module, info

    def encode(self, images: Images) -> Tensor:
        """Images -> latents, float32 (N, D). Raises as `LoadedClassifier.logits`."""
        return inference.encode(self.module, _to_tensor(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents, float (N, D) -> images, float32 (N, 3, 32, 32) in [0, 1]."""
        return inference.decode(self.module, latents)

    def reconstruct(self, images: Images) -> Tensor:
        """`decode` after `encode`."""
        return inference.reconstruct(self.module, _to_tensor(images))

    def export_decoder(self, path: PathLike) -> None:
        """Write the decoder for other runtimes: `latents`, float32 (N, D) -> `images`, as `LoadedClassifier.export`.

        There is no encoder to export in every autoencoder: the default one fits its latents by gradient steps.
        """
        from cifarctl.export import export

        latents = (self.module.latent_dim,)
        export(Path(path), self.module, self.info, self.module.decode, latents, ("latents", "images"))


@dataclass(frozen=True)
class Run:
    """A finished training run. summary: what its `summary.json` holds."""

    path: Path
    summary: dict[str, Any]


def load(model: PathLike | None = None, *, device: Device = "auto") -> LoadedClassifier | LoadedAutoencoder:
    """A `.safetensors` file, a run's folder, or "classifier" (the default) or "autoencoder", the pretrained ones.

    Raises WeightsError, UsageError.
    """
    path = weights.resolve(None if model is None else Path(model), "classifier")
    chosen = select_device(device)
    if weights.read_info(path).kind == "classifier":
        return LoadedClassifier(*weights.load_classifier(path, chosen))
    return LoadedAutoencoder(*weights.load_autoencoder(path, chosen))


def train_classifier(
    out: PathLike,
    *,
    data: str = "cifar10",
    recipe: str = "fast",
    arch: str | None = None,
    encoder: PathLike | None = None,
    finetune: bool = False,
    teacher: PathLike | None = None,
    seed: int = 0,
    limit: int | None = None,
    device: Device = "auto",
    overwrite: bool = False,
    **overrides: Any,
) -> Run:
    """Train into the folder `out`, as `cifarctl train-clf`. overrides: fields of `training.recipes.Recipe`, `epochs`
    for one.

    An archive must have been downloaded. Raises CifarctlError.
    """
    options = TrainOptions(
        kind="classifier",
        data=data,
        recipe=recipe,
        arch=arch,
        encoder=str(encoder) if encoder else None,
        finetune=finetune,
        teacher=str(teacher) if teacher else None,
        seed=seed,
        limit=limit,
        device=device,
        overrides=overrides,
    )
    return _train(options, out, overwrite=overwrite)


def train_autoencoder(
    out: PathLike,
    *,
    data: str = "cifar10",
    recipe: str = "fast",
    arch: str | None = None,
    latent_dim: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    device: Device = "auto",
    overwrite: bool = False,
    **overrides: Any,
) -> Run:
    """Train into the folder `out`, as `cifarctl train-ae`. Arguments as for `train_classifier`."""
    options = TrainOptions(
        kind="autoencoder",
        data=data,
        arch=arch,
        recipe=recipe,
        latent_dim=latent_dim,
        seed=seed,
        limit=limit,
        device=device,
        overrides=overrides,
    )
    return _train(options, out, overwrite=overwrite)


def evaluate(
    model: LoadedClassifier | LoadedAutoencoder,
    *,
    data: str | None = None,
    split: Literal["train", "val", "test"] = "test",
    tta: bool = False,
    allow_changed_data: bool = False,
) -> ClassifierReport | AutoencoderReport:
    """Measure a model on a split of `data`, by default of the data that it was trained on.

    Raises DataError; its ChangedDataError if `split` is train or val and that data has changed since the training, so
    that val may hold images that the model was trained on, unless `allow_changed_data`.
    """
    source = Source.trained_on(model.info.data, data, None)
    source.check_unchanged(model.info.data, split, allow=allow_changed_data)
    device = next(model.module.parameters()).device
    images = source.load(split).to(device)
    if isinstance(model, LoadedClassifier):
        require_classes(model.classes, images.classes, "the model")
        return evaluate_classifier(model.module, images, tta=tta)
    return evaluate_autoencoder(model.module, images, source.load("train").images.to(device))


def download(data: Literal["cifar10", "cifar100"] = "cifar10") -> Path:
    """Get and verify a data set, unless it is there. Returns its file. Raises DownloadError."""
    path, archive = Source(data).path, ARCHIVES[data]
    if not path.exists():
        for _ in install_official(archive, path):
            pass
    return path


def _train(options: TrainOptions, out: PathLike, *, overwrite: bool) -> Run:
    for event in train(options, Path(out), overwrite=overwrite):
        if isinstance(event, Finished):
            return Run(event.run, event.summary)
    raise AssertionError("a training run ends with Finished")


def _to_tensor(images: Images) -> Tensor:
    if isinstance(images, str | Path):
        images = [images]
    if not isinstance(images, Tensor | np.ndarray):
        return torch.from_numpy(np.stack(list(_decoded(named_image(str(path)) for path in images))))
    tensor = torch.as_tensor(images)
    if (
        tensor.ndim != 4
        or tensor.shape[1:] != (3, 32, 32)
        or not (tensor.dtype == torch.uint8 or tensor.is_floating_point())
    ):
        raise ValueError(f"images are {tensor.dtype} {tuple(tensor.shape)}, not uint8 or float (N, 3, 32, 32)")
    return tensor


def _decoded(paths: Iterable[Path]) -> Iterator[NDArray[np.uint8]]:
    for path, image in read_images(paths):
        if isinstance(image, ImageError):
            raise ImageError(f"{path}: {image}")
        yield image
