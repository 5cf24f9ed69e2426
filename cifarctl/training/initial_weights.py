"""Start a training from trained weights: what is taken from them, and what the user should know of it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifarctl import models, weights
from cifarctl.data import Dataset
from cifarctl.data.dataset import to_float
from cifarctl.data.fingerprint import class_differences, listed
from cifarctl.errors import RunDirError, UsageError, WeightsError
from cifarctl.models.base import Classifier, Model
from cifarctl.training.options import TrainOptions
from cifarctl.wording import model_name

# What is fitted after training, to other images.
_FITTED_LATER = frozenset({"temperature", "smoothing"})
# A new head is fitted to at most this many images.
_HEAD_IMAGES = 5000
# Its penalty, as a fraction of the features' mean squared norm; and the root mean square of its logits.
_RIDGE, _LOGITS = 0.005, 2.0


def adopted(options: TrainOptions) -> TrainOptions:
    """The options with the architecture of the model that `options.init` names, if it names one.

    Raises WeightsError if the file is missing, damaged or of another kind of model, UsageError if the options choose
    another architecture.
    """
    if options.init is None or options.init_model is not None:
        return options
    path = weights.resolve(Path(options.init), options.kind)
    info = weights.read_info(path)
    weights.check_kind(path, info, options.kind)
    if options.arch not in (None, info.model):
        raise UsageError(
            f"`arch` {options.arch}: {path} holds another architecture, {info.model}",
            hint="leave out `arch`, or `init`",
        )
    if "encoder" in info.config:
        raise WeightsError(
            f"{path}: a classifier of an autoencoder's output, from which no training can start",
            hint="train one anew with `encoder`, which takes that autoencoder",
        )
    _load(path, options.kind, torch.device("cpu"))  # a damaged file is refused before any data is read
    config = {name: value for name, value in info.config.items() if name != "classes"}
    return replace(options, init_model={"model": info.model, "config": config})


@dataclass(frozen=True)
class InitialWeights:
    """A weights file to start from. name: of the file, for people. tensors: on the run's device."""

    name: str
    sha256: str
    info: weights.ModelInfo
    tensors: dict[str, Tensor]

    @property
    def description(self) -> dict[str, str]:
        """What the new weights file says of this one."""
        return {"file": self.name, "sha256": self.sha256}

    def put_into(self, model: Model, config: Mapping[str, Any], train: Dataset) -> tuple[str, ...]:
        """Replace the weights of `model`, which `config` builds, by those that fit, and fit a new head to `train`.
        Returns what was not taken, in words.
        """
        taken = {name: tensor for name, tensor in self.tensors.items() if name not in _FITTED_LATER}
        own = model.state_dict()
        of_classes = _tensors_of_classes(self.info.model, config) if isinstance(model, Classifier) else frozenset()
        new_head = ""
        if of_classes:
            rows = _rows_by_name(self.info.classes, train.classes)
            for name in of_classes & taken.keys():
                if rows is None:
                    del taken[name]
                else:
                    taken[name] = taken[name][rows]
            if rows is None:
                new_head = f"it is for other classes ({_class_changes(self.info.classes, train.classes)})"
        others = sorted(name for name in own if name in self.tensors and name not in of_classes)
        unfit = [name for name in others if name in taken and taken[name].shape != own[name].shape]
        unfit += sorted(own.keys() - self.tensors.keys())
        fitting = {name: tensor for name, tensor in taken.items() if name in own and tensor.shape == own[name].shape}
        if of_classes and not new_head and not of_classes <= fitting.keys():
            new_head = "its input has another width"
        model.load_state_dict({**own, **fitting})
        remarks = [f"weights of {self.name}: {len(fitting)} of {len(own.keys() - _FITTED_LATER)} tensors taken"]
        if unfit:
            remarks.append(f"new, since their shapes do not fit: {listed(unfit)}")
        if new_head:
            remarks.append(
                f"head: new, fitted to the training images, since {new_head}"
                if not unfit
                else f"head: new, since {new_head}"
            )
            if not unfit:
                assert isinstance(model, Classifier)
                fit_head(model, of_classes, train)
        elif of_classes and self.info.classes != train.classes:
            remarks.append(f"head: taken by the names of the classes: {listed(train.classes)}")
        return tuple(remarks)


def load_initial(reference: str, kind: models.Kind, device: torch.device, resumed_sha256: str | None) -> InitialWeights:
    """Read the weights to start from. resumed_sha256: of those that a resumed run was started from.

    Raises WeightsError, RunDirError if they are not those of the resumed run.
    """
    path = weights.resolve(Path(reference), kind)
    model, info = _load(path, kind, device)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if resumed_sha256 not in (None, sha256):
        raise RunDirError(f"{path}: not the {kind} that the run was started with", hint="bring that one back")
    return InitialWeights(model_name(str(path)), sha256, info, model.state_dict())


def _load(path: Path, kind: models.Kind, device: torch.device) -> tuple[Model, weights.ModelInfo]:
    if kind == "classifier":
        return weights.load_classifier(path, device)
    return weights.load_autoencoder(path, device)


def fit_head(model: Classifier, of_classes: frozenset[str], train: Dataset) -> None:
    """Fit the last linear layer by ridge regression from its inputs to the labels; the rest of `model` stays.

    of_classes: the names of the layer's tensors. If they are not those of one linear layer, nothing is fitted. Source:
    Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", 2022
    (arXiv:2202.10054): the gradients of a head that has not learnt anything would distort the layers before it.
    """
    owner = {name.rpartition(".")[0] for name in of_classes}
    head = model.get_submodule(owner.pop()) if len(owner) == 1 else None
    if not isinstance(head, nn.Linear):
        return
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:_HEAD_IMAGES]
    images, labels = (tensor[order.to(tensor.device)] for tensor in (train.images, train.labels))
    inputs: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].float()))
    was_training = model.training
    try:
        model.eval()
        with torch.no_grad():
            for part in torch.cat((images, images.flip(3))).split(500):
                model.classify(model.features(to_float(part)))
            x = torch.cat(inputs).double().cpu()  # (2N, D)
            y = nn.functional.one_hot(labels.repeat(2), model.classes).double().cpu()
            y -= 1 / model.classes
            mean = x.mean(0) if head.bias is not None else torch.zeros_like(x[0])
            x, offset = x - mean, y.mean(0)
            penalty = _RIDGE * x.square().sum() * torch.eye(x.shape[1], dtype=x.dtype)
            weight = torch.linalg.solve(x.T @ x + penalty, x.T @ y).T  # (classes, D)
            head.weight.copy_(weight)
            if head.bias is not None:
                head.bias.copy_(offset - weight @ mean)
            logits = model.classify(model.features(to_float(images[:500])))
            scale = _LOGITS / logits.float().square().mean().sqrt().clamp_min(1e-12)
            for parameter in head.parameters():
                parameter.mul_(scale)
    finally:
        hook.remove()
        model.train(was_training)


def _tensors_of_classes(name: str, config: Mapping[str, Any]) -> frozenset[str]:
    """The names of the tensors whose first dimension is the number of classes."""
    with torch.device("meta"):
        own, other = (models.build(name, **{**config, "classes": config["classes"] + n}).state_dict() for n in (0, 1))
    return frozenset(tensor for tensor in own if own[tensor].shape != other[tensor].shape)


def _rows_by_name(known: Sequence[str], wanted: Sequence[str]) -> Tensor | None:
    """Where the classes `wanted` stand among those `known`, int64 (classes,); None if not all of them do.

    Numbers are no names: they say which class is meant only if all classes are the same.
    """
    known, wanted = list(known), list(wanted)
    is_named = not all(name.isdecimal() for name in wanted)
    if known == wanted or (is_named and set(wanted) <= set(known)):
        return torch.tensor([known.index(name) for name in wanted])
    return None


def _class_changes(known: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    return class_differences(known, "that model", wanted, "your data")
