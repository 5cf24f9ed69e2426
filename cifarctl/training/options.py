"""What a training run is asked to do: every option, which of them fit together, and the recipe that they lead to."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

import cifarctl
from cifarctl import models
from cifarctl.data import Source, locate
from cifarctl.errors import RunDirError, UsageError
from cifarctl.hardware import Device, Precision, select_device, select_precision
from cifarctl.shell import command_line
from cifarctl.training import recipes
from cifarctl.training.recipes import Recipe, RecipeName

# Options that do not change what is learnt, or are spelled otherwise on the command line.
_NOT_TRAINING = frozenset({"kind", "data_dir", "overrides", "device", "tensorboard"})
# Options that runs of cifarctl 0.2 have. They said how to compute, not what.
_GONE = frozenset({"compile"})
# Arguments of models that the data and other options decide.
_DECIDED = frozenset({"classes", "encoder", "latent_dim"})
# Fields of a recipe with an option of their own.
_SPELLED = frozenset({"epochs", "batch_size", "lr", "weight_decay", "label_smoothing", "class_weights", "ema"})


@dataclass(frozen=True)
class TrainOptions:
    """Everything that decides what a run does; it is stored in the run's `config.json`.

    kind: what to train. data, data_dir, val_size, limit, seed: see `data.Source`; the seed also draws the first weights
    and the batches.
    arch: a registered model; None is the kind's default. latent_dim: an autoencoder's floats an image.
    encoder: for a classifier, the weights file or run folder of the autoencoder whose latents are all that it sees.
    finetune: train that one too. teacher: the weights file or run folder of the classifier whose answers are learnt
    instead of the labels. recipe: of an autoencoder, or of convolutions that are trained alone. overrides: fields of
    the recipe, by name.
    """

    kind: models.Kind
    data: str = "cifar10"
    data_dir: str | None = None
    val_size: int | None = None
    seed: int = 0
    arch: str | None = None
    latent_dim: int | None = None
    encoder: str | None = None
    finetune: bool = False
    teacher: str | None = None
    recipe: RecipeName = "fast"
    overrides: dict[str, Any] | None = None
    limit: int | None = None
    device: Device = "auto"
    precision: Precision = "auto"
    tensorboard: bool = True

    @property
    def source(self) -> Source:
        """The data set and its split."""
        return Source(self.data, self.val_size, self.seed, self.limit, Path(self.data_dir) if self.data_dir else None)

    def located(self) -> "TrainOptions":
        """The same options with absolute paths, so that they mean the same from everywhere."""
        data_dir = self.data_dir and str(Path(self.data_dir).absolute())
        # One that does not exist is the name of a pretrained model.
        encoder, teacher = (
            str(Path(model).absolute()) if model and Path(model).exists() else model
            for model in (self.encoder, self.teacher)
        )
        return replace(self, data=locate(self.data), data_dir=data_dir, encoder=encoder, teacher=teacher)

    @property
    def model_name(self) -> str:
        """The registered model to train."""
        return self.arch or models.names(self.kind)[0]

    @property
    def settings(self) -> Recipe:
        """The recipe's values for this task, with the overrides."""
        if self.kind == "autoencoder":
            recipe = recipes.AUTOENCODERS[self.recipe]
        elif self.model_name == "mlp":
            recipe = recipes.HEAD
        elif self.finetune:
            recipe = recipes.FINETUNE
        elif self.encoder and self.recipe == "fast":
            recipe = recipes.PICTURES
        else:
            recipe = recipes.CLASSIFIERS[self.recipe]
        try:
            return recipe.changed(self.overrides or {})
        except ValueError as error:
            raise UsageError(f"recipe: {error}", hint="--set FIELD=VALUE, --epochs and their like set them") from None

    @property
    def command(self) -> str:
        """The shortest command line that trains the same, but for where files lie."""
        given = {option.name: getattr(self, option.name) for option in fields(self) if option.name not in _NOT_TRAINING}
        given = {name: value for name, value in given.items() if value != getattr(TrainOptions, name)}
        overrides = dict(self.overrides or {})
        given |= {name: overrides.pop(name) for name in list(overrides) if name in _SPELLED}
        words = ["cifarctl", "train-ae" if self.kind == "autoencoder" else "train-clf"]
        for name, value in given.items():
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        overrides |= {f"model.{name}": value for name, value in overrides.pop("model", {}).items()}
        for name, value in overrides.items():
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            words += ["--set", f"{name}={text}"]
        return command_line(words)

    @classmethod
    def from_config(cls, config: dict[str, Any], path: Path) -> "TrainOptions":
        """The options in a run's `config.json`, at `path`. Raises RunDirError."""
        options = config.get("options")
        known = {option.name for option in fields(cls)}
        if not isinstance(options, dict) or set(options) - known - _GONE or "kind" not in options:
            raise RunDirError(f"{path}: its options are not those of this version ({cifarctl.__version__})")
        return cls(**{name: value for name, value in options.items() if name not in _GONE})


def _without_effect(options: TrainOptions) -> set[str]:
    """The fields of the recipe that this task does not look at."""
    fields_unused = set()
    if not options.finetune:
        fields_unused |= {"encoder_lr", "thaw"}
    if not options.teacher:
        fields_unused |= {"teacher_temperature"}
    if options.kind == "autoencoder":
        fields_unused |= {"mixup", "cutmix", "label_smoothing", "class_weights", "sides"}
    elif options.teacher:
        fields_unused |= {"label_smoothing", "class_weights"}
    if options.model_name == "mlp":
        fields_unused |= {"sides"}
        if options.encoder and not options.finetune:
            fields_unused |= {"affine", "jitter", "cutout", "mixup", "cutmix"}
    return fields_unused


def check(options: TrainOptions) -> None:
    """Raise UsageError on options that cannot go together, before any work is done."""
    kind, name = options.kind, options.model_name
    if name not in models.names(kind):
        raise UsageError(f"--arch {name}: no {kind} has this name", hint=f"one of: {', '.join(models.names(kind))}")
    if options.recipe != "fast" and (name in ("mlp", "conv2") or options.finetune):
        raise UsageError(
            f"--recipe {options.recipe}: for convolutions that are trained alone",
            hint="leave it out with --arch mlp, --arch conv2 or --finetune",
        )
    if kind == "autoencoder" and options.recipe not in recipes.AUTOENCODERS:
        raise UsageError(f"--recipe {options.recipe}: no autoencoder has it", hint="fast or best")
    if options.teacher and (options.encoder or kind == "autoencoder"):
        raise UsageError("--teacher: for a classifier of images", hint="leave out --encoder")
    if options.finetune and not options.encoder:
        raise UsageError("--finetune: there is no --encoder to fine-tune")
    arguments = options.settings.model
    if idle := sorted(_without_effect(options) & (options.overrides or {}).keys()):
        raise UsageError(f"recipe: {', '.join(idle)}: no use in this training", hint="leave it out")
    known = [argument for argument in models.arguments(name) if argument not in _DECIDED]
    if unknown := next((argument for argument in arguments if argument not in known), None):
        raise UsageError(f"recipe: {name} has no argument {unknown}, only: {', '.join(known)}")
    try:
        with torch.device("meta"):
            model = models.build(
                name, **arguments, **({"latent_dim": options.latent_dim} if options.latent_dim else {})
            )
    except ValueError as error:
        given = f"--latent-dim {options.latent_dim}" if options.latent_dim is not None else "the recipe's model"
        raise UsageError(f"{given}: {error}") from None
    parameters = {parameter for parameter, _ in model.named_parameters()}
    if unknown := next(
        (parameter for parameter in options.settings.trained_until if parameter not in parameters), None
    ):
        raise UsageError(f"recipe: trained_until names {unknown}, which {name} does not have")
    select_precision(options.precision, select_device(options.device))
