"""Save models to safetensors files and load them. A file contains all that is needed to build its model; nothing in it
is executed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cifarctl import models, typicality
from cifarctl.errors import WeightsError
from cifarctl.files import PRETRAINED, to_json
from cifarctl.hardware import memory_format
from cifarctl.models.base import Autoencoder, Classifier, Model
from cifarctl.names import is_text
from cifarctl.sealed_file import load_sealed, save_sealed
from cifarctl.version import __version__
from cifarctl.wording import with_article

_FORMAT = "1"
_HEADER_BYTES = 100_000_000  # the maximum that safetensors accepts
M = TypeVar("M", bound=Model)


@dataclass(frozen=True)
class ModelInfo:
    """The metadata of a weights file.

    model, config: the arguments of `models.build`. classes: their names, none for an autoencoder. data: the data set
    and its split (`data.Source.describe`). metrics: measured at the end of training, by name. training: the command
    that trained it, and the versions it used. created: a time in UTC, ISO 8601.
    """

    kind: models.Kind
    model: str
    config: dict[str, Any]
    classes: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    cifarctl_version: str = __version__
    created: str = ""


def of_model(model: Model) -> dict[str, Tensor]:
    """All tensors that a finished model's file holds: its `state_dict`, and a classifier's typicality if it has one."""
    score = model.typicality if isinstance(model, Classifier) else None
    return {**model.state_dict(), **(score.tensors() if score else {})}


def save(path: Path, tensors: Mapping[str, Tensor], info: ModelInfo) -> None:
    """Write a model's tensors (`of_model`) to `path`, atomically. Raises OSError."""
    metadata = {
        "format": _FORMAT,
        "kind": info.kind,
        "model": info.model,
        "config": to_json(info.config),
        "classes": to_json(info.classes),
        "data": to_json(info.data),
        "metrics": to_json(info.metrics),
        "training": to_json(info.training),
        "cifarctl_version": info.cifarctl_version,
        "created": info.created or datetime.now(UTC).isoformat(timespec="seconds"),
    }
    save_sealed(path, tensors, metadata)


def resolve(reference: Path | None, kind: models.Kind) -> Path:
    """The weights file that a user means: a `.safetensors` file, a run's folder, or "classifier" or "autoencoder" for
    the pretrained ones, if no file or folder has that name. None is the pretrained one of `kind`.

    Raises WeightsError if there is none.
    """
    if reference is None:
        return PRETRAINED / f"{kind}.safetensors"
    if str(reference) in get_args(models.Kind) and not reference.exists():
        return PRETRAINED / f"{reference}.safetensors"
    if reference.is_dir():
        path = reference / "model.safetensors"
        if not path.is_file():
            raise WeightsError(f"{reference}: a folder without model.safetensors, so no finished run")
        return path
    if not reference.exists():
        raise WeightsError(
            f"{reference}: no such file",
            hint=f"a model is a .safetensors file, a run's folder, or pretrained: {', '.join(get_args(models.Kind))}",
        )
    if not reference.is_file():
        raise WeightsError(f"{reference}: not a regular file")
    return reference


def has_typicality(path: Path) -> bool:
    """Whether a weights file holds a score of how like the training images an image is. Raises WeightsError."""
    read_info(path)
    with safe_open(path, framework="pt") as file:
        return not typicality.NAMES.isdisjoint(file.keys())


def load_classifier(path: Path, device: torch.device) -> tuple[Classifier, ModelInfo]:
    """Read a classifier, ready to predict on `device`. Raises WeightsError."""
    return _load(path, device, "classifier", Classifier)  # type: ignore[type-abstract]


def load_autoencoder(path: Path, device: torch.device) -> tuple[Autoencoder, ModelInfo]:
    """Read an autoencoder, ready on `device`. Raises WeightsError."""
    return _load(path, device, "autoencoder", Autoencoder)  # type: ignore[type-abstract]


def read_info(path: Path) -> ModelInfo:
    """Read and check the file's metadata, but not its tensors. Raises WeightsError."""
    if not is_text(str(path)):
        raise WeightsError(f"{path}: its name is not UTF-8, and safetensors cannot open such a file", hint="rename it")
    try:
        with safe_open(path, framework="pt") as file:
            return _parse(path, file.metadata() or {})
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        hint = None
        if path.suffix in (".pt", ".pth", ".ckpt", ".bin", ".pkl"):
            hint = "such files may run code when they are read; safetensors.torch.save_file writes tensors without it"
        raise WeightsError(f"{path}: not a safetensors file ({error})", hint=hint) from None


def check_kind(path: Path, info: ModelInfo, kind: models.Kind) -> None:
    """Raise WeightsError if the file holds a model of the other kind."""
    if info.kind != kind:
        raise WeightsError(f"{path}: holds {with_article(info.kind)}, but {kind} weights are needed")


def _load(path: Path, device: torch.device, kind: models.Kind, model_class: type[M]) -> tuple[M, ModelInfo]:
    info = read_info(path)
    check_kind(path, info, kind)
    try:
        with torch.device("meta"):  # shapes without memory, so that a hostile configuration costs nothing
            model = models.build(info.model, **info.config)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{path}: field config does not describe a {info.model!r} model ({error})") from None
    if not isinstance(model, model_class):
        raise WeightsError(f"{path}: field model is {info.model!r}, which is no {kind}")

    expected = model.state_dict()
    tensors = _read_tensors(path, expected, typicality.NAMES if isinstance(model, Classifier) else frozenset())
    score = {name: tensors.pop(name).to(device) for name in typicality.NAMES & tensors.keys()}
    if "smoothing" in expected:
        tensors.setdefault("smoothing", torch.zeros(()))
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.is_floating_point() != expected[name].is_floating_point():
            found, needed = (f"{t.dtype} {tuple(t.shape)}" for t in (tensor, expected[name]))
            raise WeightsError(f"{path}: tensor {name} is {found}, expected {needed}")
        # Files may store fewer bits (bf16, fp16); models compute in the type that they were built with.
        tensors[name] = tensor.to(device, expected[name].dtype)
        if not tensors[name].isfinite().all():
            raise WeightsError(f"{path}: tensor {name} holds values that are not finite")
    _check_calibration(path, tensors)
    model.load_state_dict(tensors, assign=True)
    _complete_classifier(path, model, info, score)
    return model.to(memory_format=memory_format(device)).eval(), info


def _check_calibration(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if "temperature" in tensors and not tensors["temperature"] > 0:
        raise WeightsError(f"{path}: tensor temperature is {tensors['temperature'].item()}, not above 0")
    if "smoothing" in tensors and not 0 <= tensors["smoothing"] < 1:
        raise WeightsError(f"{path}: tensor smoothing is {tensors['smoothing'].item()}, not from 0 to 1")


def _complete_classifier(path: Path, model: Model, info: ModelInfo, score: Mapping[str, Tensor]) -> None:
    """Check a classifier's classes, and set its typicality from the tensors `score`, unless they are none."""
    if not isinstance(model, Classifier):
        return
    if len(info.classes) != model.classes:
        raise WeightsError(f"{path}: field classes names {len(info.classes)}, but the model has {model.classes}")
    if score:
        try:
            model.typicality = typicality.from_tensors(score, model.summary_size)
        except ValueError as error:
            raise WeightsError(f"{path}: {error}") from None


def _read_tensors(path: Path, expected: Mapping[str, Tensor], optional: frozenset[str]) -> dict[str, Tensor]:
    """The tensors of the file, which must have the names of `expected` and about their size, and all or none of those
    that are `optional`.

    They are read into memory: a mapped file crashes the process if it is truncated meanwhile (SIGBUS), and safetensors
    0.8.0 leaks 64 bytes per mapped tensor.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = set(file.keys())
        names = expected.keys() | (optional if optional & found else frozenset())
        if difference := (found ^ names) - ({"smoothing"} - found):  # version 0.2 did not have it
            name = min(difference)
            raise WeightsError(f"{path}: tensor {name} is {'unexpected' if name in found else 'missing'}")
        if (size := path.stat().st_size) > 8 * sum(tensor.numel() for tensor in expected.values()) + _HEADER_BYTES:
            raise WeightsError(f"{path}: {size:,} bytes are more than its model's tensors can take")
        tensors, *_ = load_sealed(path)
        return {name: tensors[name] for name in names if name in found}
    # The last four: an unknown dtype, or a file that has changed in between.
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: its tensors cannot be read ({error})") from None


@dataclass(frozen=True)
class _Metadata:
    """What a file says beside its tensors. Every method raises WeightsError."""

    path: Path
    fields: dict[str, str]

    def text(self, name: str) -> str:
        if name in self.fields:
            return self.fields[name]
        if "position" in self.fields:
            raise WeightsError(f"{self.path}: the checkpoint of a run, no model", hint="name the run's folder")
        raise WeightsError(f"{self.path}: no field {name} in its metadata, so it is no model of cifarctl's")

    def structured(self, name: str, kind: type[Any]) -> Any:
        try:
            value = json.loads(self.text(name))
        except (ValueError, RecursionError):
            raise WeightsError(f"{self.path}: field {name} is not JSON") from None
        if not isinstance(value, kind):
            raise WeightsError(f"{self.path}: field {name} is no JSON {'object' if kind is dict else 'list'}")
        return value

    def check_format(self) -> None:
        self.text("kind")  # other programs write a format too, "pt" for one
        if (found := self.text("format")) != _FORMAT:
            raise WeightsError(
                f"{self.path}: field format is {found[:40]!r}, this version reads {_FORMAT!r}",
                hint="a newer cifarctl may read it",
            )

    def kind(self) -> models.Kind:
        found = self.text("kind")
        for kind in get_args(models.Kind):
            if found == kind:
                return cast("models.Kind", kind)
        raise WeightsError(f"{self.path}: field kind is {found!r}, not autoencoder or classifier")


def _parse(path: Path, fields: dict[str, str]) -> ModelInfo:
    """Check the metadata field by field. Raises WeightsError."""
    metadata = _Metadata(path, fields)
    metadata.check_format()
    kind = metadata.kind()
    if (name := metadata.text("model")) not in models.REGISTRY:
        raise WeightsError(f"{path}: field model is {name!r}, which this version does not know")
    classes = metadata.structured("classes", list)
    if not all(isinstance(item, str) for item in classes):
        raise WeightsError(f"{path}: field classes is no list of names")
    metrics = metadata.structured("metrics", dict)
    if any(isinstance(value, float) and not math.isfinite(value) for value in metrics.values()):
        raise WeightsError(f"{path}: field metrics holds values that are not finite")
    return ModelInfo(
        kind,
        name,
        metadata.structured("config", dict),
        tuple(classes),
        metadata.structured("data", dict),
        metrics,
        metadata.structured("training", dict) if "training" in fields else {},  # an early file may lack it
        metadata.text("cifarctl_version"),
        metadata.text("created"),
    )
