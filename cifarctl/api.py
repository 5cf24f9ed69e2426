"""The commands' verbs for Python programs, as `cifarctl.load` and so on."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast, get_args, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifarctl import inference, weights
from cifarctl.data import Arrays, Dataset, Source, Split
from cifarctl.data.archive import ARCHIVES
from cifarctl.data.arrays import NAME, Part, labelled
from cifarctl.data.contents import Contents
from cifarctl.data.download import install_official
from cifarctl.data.images import named_image, read_images
from cifarctl.data.seen import remark_on_seen
from cifarctl.errors import ArrayError, ChangedDataError, ImageError, UsageError
from cifarctl.evaluation import (
    AutoencoderReport,
    ClassifierReport,
    evaluate_autoencoder,
    evaluate_classifier,
    require_classes,
)
from cifarctl.hardware import Device, Precision, select_device
from cifarctl.models.base import Autoencoder, Classifier
from cifarctl.progress import Progress, ignore
from cifarctl.training.checkpoint import Record
from cifarctl.training.options import TrainOptions, check_values, resumed
from cifarctl.training.preflight import check_stored_options
from cifarctl.training.run_dir import RunDir, read_history
from cifarctl.training.session import Event, Finished, train

PathLike = str | Path
_Array = Tensor | NDArray[np.uint8] | NDArray[np.float32]
Images = _Array | PathLike | Sequence[PathLike] | Sequence[_Array]
"""uint8, or float in [0, 1], (N, 3, 32, 32) or (N, 32, 32, 3), or a list of such images; or image files of any size."""
Data = PathLike | Arrays | Part
"""A data set by name or path, or a program's own images: see `Arrays`."""


@dataclass(frozen=True)
class Prediction:
    """One image's answer. label: None if it was rejected. top: (label, confidence), the likeliest first.
    typicality: the fraction of validation images that are less like the training images than this one; None if the
    model's file has no such score.
    """

    label: str | None
    confidence: float
    top: tuple[tuple[str, float], ...]
    typicality: float | None = None


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

    def predict(
        self,
        images: Images,
        *,
        top_k: int = 1,
        tta: bool = False,
        reject: float | None = None,
        on_event: Callable[[Progress], object] | None = None,
    ) -> list[Prediction]:
        """The `top_k` likeliest classes of each image, with their probabilities. Arguments as for `logits`.

        reject: the label of an image with a lower typicality is None. Raises ValueError if the model has no such score.
        on_event: called with a `Progress` after each batch of images.
        """
        if not 1 <= top_k <= len(self.classes):
            raise ValueError(f"top_k is {top_k}, not from 1 to {len(self.classes)}, the number of classes")
        if reject is not None and not 0 <= reject <= 1:
            raise ValueError(f"reject is {reject}, not from 0 to 1")
        if reject is not None and self.module.typicality is None:
            raise ValueError("reject: the model has no typicality score")
        answers = inference.answer(self.module, _to_tensor(images), tta=tta, on_event=_callable(on_event))
        ranked = inference.rank(answers.logits, self.classes, top_k)
        typicality = [None] * len(ranked) if answers.typicality is None else answers.typicality.tolist()
        return [
            Prediction(inference.accepted(top[0][0], value, reject), top[0][1], tuple(top), value)
            for top, value in zip(ranked, typicality, strict=True)
        ]

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

    def decode(self, latents: Tensor | NDArray[np.floating[Any]]) -> Tensor:
        """Latents, float (N, D) -> images, float32 (N, 3, 32, 32) in [0, 1]. Raises ValueError on another shape."""
        if not isinstance(latents, Tensor | np.ndarray):
            raise TypeError(f"latents are of type {type(latents).__name__}, not a tensor or an array")
        tensor, floats = torch.as_tensor(latents), self.module.latent_dim
        if tensor.ndim != 2 or tensor.shape[1] != floats or not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"latents are {kind} {tuple(tensor.shape)}, not float (N, {floats})")
        return inference.decode(self.module, tensor.float())

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


_Loaded = TypeVar("_Loaded", LoadedClassifier, LoadedAutoencoder)


@dataclass(frozen=True)
class Run(Generic[_Loaded]):
    """A finished training run. summary: what its `summary.json` holds. history: each epoch's record, the first one
    first; the validation before training is epoch 0, where it was made.
    """

    path: Path
    summary: dict[str, Any]
    history: list[Record]

    def load(self, *, device: Device = "auto") -> _Loaded:
        """The model of the best epoch. Raises as the function `load`."""
        return cast("_Loaded", load(self.path, device=device))


@overload
def load(model: Literal["classifier"] | None = None, *, device: Device = "auto") -> LoadedClassifier: ...
@overload
def load(model: Literal["autoencoder"], *, device: Device = "auto") -> LoadedAutoencoder: ...
@overload
def load(model: PathLike, *, device: Device = "auto") -> LoadedClassifier | LoadedAutoencoder: ...
def load(model: PathLike | None = None, *, device: Device = "auto") -> LoadedClassifier | LoadedAutoencoder:
    """A `.safetensors` file, a run's folder, or "classifier" (the default) or "autoencoder", the pretrained ones.

    `load_classifier` and `load_autoencoder` refuse a model of the other kind. Raises WeightsError, UsageError.
    """
    path = weights.resolve(None if model is None else Path(model), "classifier")
    if weights.read_info(path).kind == "classifier":
        return load_classifier(path, device=device)
    return load_autoencoder(path, device=device)


def load_classifier(model: PathLike | None = None, *, device: Device = "auto") -> LoadedClassifier:
    """As `load`, by default the pretrained classifier. Raises WeightsError if the file holds an autoencoder."""
    path = weights.resolve(None if model is None else Path(model), "classifier")
    return LoadedClassifier(*weights.load_classifier(path, select_device(device)))


def load_autoencoder(model: PathLike | None = None, *, device: Device = "auto") -> LoadedAutoencoder:
    """As `load`, by default the pretrained autoencoder. Raises WeightsError if the file holds a classifier."""
    path = weights.resolve(None if model is None else Path(model), "autoencoder")
    return LoadedAutoencoder(*weights.load_autoencoder(path, select_device(device)))


def train_classifier(
    out: PathLike,
    *,
    data: Data = "cifar10",
    data_dir: PathLike | None = None,
    val_size: int | None = None,
    limit: int | None = None,
    recipe: str = "fast",
    arch: str | None = None,
    init: PathLike | None = None,
    encoder: PathLike | None = None,
    finetune: bool = False,
    teacher: PathLike | None = None,
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = True,
    on_event: Callable[[Event], object] | None = None,
    **overrides: Any,
) -> Run[LoadedClassifier]:
    """Train into the folder `out`, as `cifarctl train-clf`.

    data: "cifar10" or "cifar100", which must have been downloaded (`download`), into `data_dir` if it is given;
    "synthetic"; the path of a folder DIR/CLASS/*.png or DIR/{train,val,test}/CLASS/*.png, of a list of images (.csv) or
    of an .npz or .npy file; or arrays or tensors, (images, labels) or `Arrays`.
    val_size: training images held out for validation; None is 2,000 or a tenth, whichever is fewer.
    limit: train on at most so many of the others. recipe: one of the architecture's, by name.
    arch: a registered model; None is that of `init`, or the default one. init: a trained classifier to start from, by
    weights file, run folder or name. encoder: an autoencoder, by weights file, run folder or name,
    whose latents are all that the classifier sees; finetune: train it too. teacher: a classifier whose answers are
    learnt instead of the labels. seed: draws the splits, the first weights and the batches.
    resume: go on with the unfinished run in `out`, with the same arguments; but device, precision, tensorboard and
    the place of the same data may differ. overwrite: replace the run in `out`.
    on_event: called with each event (`training.session.Event`); what it raises ends the run.
    overrides: fields of `training.recipes.Recipe`, `epochs` for one.

    Raises CifarctlError: ArrayError, which is a ValueError, about arrays, UsageError about other arguments.
    """
    options = TrainOptions(
        kind="classifier",
        data=_name_of(data),
        data_dir=str(data_dir) if data_dir else None,
        val_size=val_size,
        limit=limit,
        recipe=recipe,
        arch=arch,
        init=str(init) if init else None,
        encoder=str(encoder) if encoder else None,
        finetune=finetune,
        teacher=str(teacher) if teacher else None,
        seed=seed,
        device=device,
        precision=precision,
        tensorboard=tensorboard,
        overrides=overrides,
    )
    return _train(options, _arrays_of(data), out, resume=resume, overwrite=overwrite, on_event=on_event)


def train_autoencoder(
    out: PathLike,
    *,
    data: Data = "cifar10",
    data_dir: PathLike | None = None,
    val_size: int | None = None,
    limit: int | None = None,
    recipe: str = "fast",
    arch: str | None = None,
    init: PathLike | None = None,
    latent_dim: int | None = None,
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = True,
    on_event: Callable[[Event], object] | None = None,
    **overrides: Any,
) -> Run[LoadedAutoencoder]:
    """Train into the folder `out`, as `cifarctl train-ae`. latent_dim: floats per image; None is the architecture's.

    The other arguments are as for `train_classifier`, but that arrays need no labels.
    """
    options = TrainOptions(
        kind="autoencoder",
        data=_name_of(data),
        data_dir=str(data_dir) if data_dir else None,
        val_size=val_size,
        limit=limit,
        recipe=recipe,
        arch=arch,
        init=str(init) if init else None,
        latent_dim=latent_dim,
        seed=seed,
        device=device,
        precision=precision,
        tensorboard=tensorboard,
        overrides=overrides,
    )
    return _train(options, _arrays_of(data), out, resume=resume, overwrite=overwrite, on_event=on_event)


@overload
def evaluate(
    model: LoadedClassifier,
    *,
    data: Data | None = None,
    data_dir: PathLike | None = None,
    split: Split = "test",
    tta: bool = False,
    allow_changed_data: bool = False,
    on_event: Callable[[Progress], object] | None = None,
) -> ClassifierReport: ...
@overload
def evaluate(
    model: LoadedAutoencoder,
    *,
    data: Data | None = None,
    data_dir: PathLike | None = None,
    split: Split = "test",
    allow_changed_data: bool = False,
    on_event: Callable[[Progress], object] | None = None,
) -> AutoencoderReport: ...
@overload
def evaluate(
    model: LoadedClassifier | LoadedAutoencoder | PathLike,
    *,
    data: Data | None = None,
    data_dir: PathLike | None = None,
    split: Split = "test",
    tta: bool = False,
    allow_changed_data: bool = False,
    on_event: Callable[[Progress], object] | None = None,
) -> ClassifierReport | AutoencoderReport: ...
def evaluate(
    model: LoadedClassifier | LoadedAutoencoder | PathLike,
    *,
    data: Data | None = None,
    data_dir: PathLike | None = None,
    split: Split = "test",
    tta: bool = False,
    allow_changed_data: bool = False,
    on_event: Callable[[Progress], object] | None = None,
) -> ClassifierReport | AutoencoderReport:
    """Measure a model, or the one that `load` finds by this name, on a split of `data`, by default of the data that it
    was trained on.

    data: as for training. (images, labels), or images alone for an autoencoder, are split as in training if the model
    was trained on them; otherwise they all are the test split. Their labels count the classes of that training.

    on_event: called with a `Progress` after each batch, and before each longer computation; what it raises ends it.

    Raises DataError; its ChangedDataError if `split` is train or val and that data has changed since the training, so
    that val may hold images that the model was trained on, unless `allow_changed_data`.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}, not one of: {', '.join(get_args(Split))}")
    on_event = _callable(on_event)
    if isinstance(model, str | Path):
        model = load(model)
    if not isinstance(model, LoadedClassifier | LoadedAutoencoder):
        raise TypeError(f"model is of type {type(model).__name__}, not a loaded model, a path or a name")
    source, images = _chosen(model.info, data, Path(data_dir) if data_dir else None, split, allow_changed_data)
    images = images.to(device := next(model.module.parameters()).device)
    if isinstance(model, LoadedClassifier):
        require_classes(model.classes, images.classes, "the model")
        return evaluate_classifier(model.module, images, tta=tta, on_event=on_event)
    if not source.has("train"):
        source = Source.trained_on(model.info.data, None, source.folder)
    train_images = source.load("train").images.to(device)
    return evaluate_autoencoder(model.module, images, train_images, on_event=on_event)


def download(data: Literal["cifar10", "cifar100"] = "cifar10", *, data_dir: PathLike | None = None) -> Path:
    """Get and verify a data set, unless it is there. Returns its file. Raises DownloadError."""
    path, archive = Source(data, folder=Path(data_dir) if data_dir else None).path, ARCHIVES[data]
    if not path.exists():
        for _ in install_official(archive, path):
            pass
    return path


def inspect_data(
    data: Data, *, data_dir: PathLike | None = None, val_size: int | None = None, seed: int = 0
) -> Contents:
    """What training would find in `data`: classes, images per split and class, which splits are drawn, and what is not
    used. No image is decoded. Arguments and errors as for `train_classifier`.
    """
    folder = str(data_dir) if data_dir else None
    options = TrainOptions("classifier", data=_name_of(data), data_dir=folder, val_size=val_size, seed=seed)
    check_values(options)
    source = options.source_of(_arrays_of(data))
    return replace(source.contents(), remarks=source.check())


def _callable(on_event: Callable[[Any], object] | None) -> Callable[[Any], object]:
    if not (on_event is None or callable(on_event)):
        raise UsageError(f"`on_event` is {on_event!r}, not a function")
    return on_event or ignore


_TRAINING = threading.RLock()


def _train(
    options: TrainOptions,
    arrays: Arrays | None,
    out: PathLike,
    *,
    resume: bool,
    overwrite: bool,
    on_event: Callable[[Event], object] | None,
) -> Run[Any]:
    path = Path(out)
    on_event = _callable(on_event)
    if arrays and options.kind == "classifier" and not arrays.datasets["train"].classes:
        raise ArrayError("`data`: a classifier needs labels", hint="`data` takes (images, labels)")
    if resume:
        RunDir.check_resumable(path)
        run = RunDir.opened(path)
        stored = check_stored_options(run.read_config(), run.config)
        names = [
            option.name for option in fields(TrainOptions) if option.name not in ("kind", "overrides", "init_model")
        ]
        options = resumed(options, stored, [*names, *(stored.overrides or {}), *(options.overrides or {})])
    # One at a time: another thread's training would draw from the same random numbers.
    # Closed, or the folder would stay locked after an exception of `on_event`.
    with _TRAINING, closing(train(options, path, resume=resume, overwrite=overwrite, arrays=arrays)) as events:
        for event in events:
            on_event(event)
            if isinstance(event, Finished):
                return Run(event.run, event.summary, read_history(Path(event.summary["model"])))
    raise AssertionError("a training run ends with Finished")


def _chosen(
    info: weights.ModelInfo,
    data: Data | None,
    folder: Path | None,
    split: Literal["train", "val", "test"],
    allow_changed: bool,
) -> tuple[Source, Dataset]:
    """The data to measure a model on, and its split, as `evaluate` says."""
    if data is None or isinstance(data, str | Path | Arrays):
        name, arrays = (None, None) if data is None else (_name_of(data), _arrays_of(data))
        source = Source.trained_on(info.data, name, folder, arrays, tuple(info.classes))
        source.check_unchanged(info.data, split, allow=allow_changed)
        if split == "test":
            remark_on_seen(source, info.data, allow=allow_changed)
        return source, source.load(split)
    classes = info.classes or info.data.get("classes") or None
    images = labelled(data, "test", classes)
    with suppress(ArrayError):  # what lacks a class cannot have been trained on
        source = Source.trained_on(info.data, NAME, folder, Arrays(data, classes=classes if images.classes else None))
        if source.changes(info.data, "train") == []:
            return source, source.load(split)
    if split != "test":
        raise ChangedDataError(f"{NAME}: not the data that the model was trained on, so there is no {split} in it")
    return Source.trained_on(info.data, None, folder), images


def _name_of(data: Data) -> str:
    return str(data) if isinstance(data, str | Path) else NAME


def _arrays_of(data: Data) -> Arrays | None:
    """The arrays, unless `data` is a name."""
    if isinstance(data, str | Path):
        return None
    if not isinstance(data, Arrays | Tensor | np.ndarray | tuple | list):
        raise UsageError(
            f"`data` is of type {type(data).__name__}, not a name, a path or arrays",
            hint="(images, labels), arrays or tensors, or an `Arrays` of such parts",
        )
    return data if isinstance(data, Arrays) else Arrays(data)


def _to_tensor(images: Images) -> Tensor:
    if isinstance(images, str | Path):
        images = [images]
    if not isinstance(images, Tensor | np.ndarray):
        if not isinstance(images, Sequence):
            raise TypeError(f"images are of type {type(images).__name__}, not arrays, tensors or paths")
        if not images:
            raise ValueError("images: an empty list")
        kinds = {type(image).__name__ for image in images}
        tensors = [torch.as_tensor(image) for image in images if isinstance(image, Tensor | np.ndarray)]
        if len(tensors) == len(images):
            if len(shapes := {tuple(tensor.shape) for tensor in tensors}) > 1:
                raise ValueError(f"images are of several shapes: {', '.join(map(str, sorted(shapes)))}")
            return _to_tensor(torch.stack(tensors))
        if not all(isinstance(image, str | Path) for image in images):
            raise TypeError(f"images are a list of {' and '.join(sorted(kinds))}, not all arrays or all paths")
        return torch.from_numpy(np.stack(list(_decoded(named_image(str(path)) for path in images))))
    tensor = torch.as_tensor(images)
    if tensor.ndim == 4 and tensor.shape[1:] == (32, 32, 3):
        tensor = tensor.permute(0, 3, 1, 2)
    is_float = tensor.is_floating_point()
    if tensor.ndim != 4 or tensor.shape[1:] != (3, 32, 32) or not (tensor.dtype == torch.uint8 or is_float):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(
            f"images are {kind} {tuple(tensor.shape)}, not uint8 or float (N, 3, 32, 32) or (N, 32, 32, 3)"
        )
    if is_float and not ((tensor >= 0) & (tensor <= 1)).all():
        raise ValueError("images of floats have pixels from 0 to 1, and these have others, or NaN")
    return tensor


def _decoded(paths: Iterable[Path]) -> Iterator[NDArray[np.uint8]]:
    for path, image in read_images(paths):
        if isinstance(image, ImageError):
            raise ImageError(f"{path}: {image}")
        yield image
