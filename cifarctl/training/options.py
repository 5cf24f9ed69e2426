"""What a training run is asked to do: every option, which of them fit together, and the recipe that they lead to."""

import json
import types
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from cifarctl import models
from cifarctl.data import Arrays, Source, locate
from cifarctl.data.arrays import NAME as ARRAYS
from cifarctl.errors import RunDirError, UsageError
from cifarctl.hardware import Device, Precision, select_device, select_precision
from cifarctl.models.base import Classifier, Model
from cifarctl.shell import command_line
from cifarctl.training import recipes
from cifarctl.training.recipes import Recipe
from cifarctl.version import __version__

# Options that do not change what is learnt, or are spelled otherwise on the command line.
_NOT_TRAINING = frozenset({"kind", "data_dir", "overrides", "device", "tensorboard", "init_model"})
# Options that runs of cifarctl 0.2 have. They said how to compute, not what.
_GONE = frozenset({"compile"})
# Fields of recipes that had another name in version 0.2.
RENAMED_FIELDS = {"sides": "image_sizes"}
_KINDS = {str: "a text", bool: "true or false", int: "a whole number", dict: "an object", types.NoneType: "null"}
_LEAST = {"seed": 0, "val_size": 1, "limit": 1, "latent_dim": 1}
_MOST_SEED = 2**31 - 1
# Arguments of models that the data and other options decide.
_DECIDED = frozenset({"classes", "encoder", "latent_dim"})


@dataclass(frozen=True)
class TrainOptions:
    """Everything that decides what a run does; it is stored in the run's `config.json`.

    kind: what to train. data, data_dir, val_size, limit, seed: see `data.Source`; the seed also draws the first weights
    and the batches.
    arch: a registered model; None is that of `init`, or the kind's default. latent_dim: an autoencoder's floats an
    image. init: the weights file or run folder of a model of this kind to start from, instead of new weights.
    init_model: its {"model": NAME, "config": {…}}, as `models.build` takes an encoder; `initial_weights.adopted` reads
    it from the file.
    encoder: for a classifier, the weights file or run folder of the autoencoder whose latents are all that it sees.
    finetune: train that one too. teacher: the weights file or run folder of the classifier whose answers are learnt
    instead of the labels. recipe: one of the architecture's, by name. overrides: fields of the recipe, by name.
    """

    kind: models.Kind
    data: str = "cifar10"
    data_dir: str | None = None
    val_size: int | None = None
    seed: int = 0
    arch: str | None = None
    init: str | None = None
    init_model: dict[str, Any] | None = None
    latent_dim: int | None = None
    encoder: str | None = None
    finetune: bool = False
    teacher: str | None = None
    recipe: str = recipes.DEFAULT_RECIPE
    overrides: dict[str, Any] | None = None
    limit: int | None = None
    device: Device = "auto"
    precision: Precision = "auto"
    tensorboard: bool = True

    @property
    def source(self) -> Source:
        """The data set and its split."""
        return self.source_of(None)

    def source_of(self, arrays: Arrays | None) -> Source:
        """The same with the arrays that `data` stands for, if it is their name."""
        folder = Path(self.data_dir) if self.data_dir else None
        return Source(self.data, self.val_size, self.seed, self.limit, folder, arrays)

    def located(self) -> "TrainOptions":
        """The same options with absolute paths, so that they mean the same from everywhere."""
        data_dir = self.data_dir and str(Path(self.data_dir).absolute())
        # One that does not exist is the name of a pretrained model.
        init, encoder, teacher = (
            str(Path(model).absolute()) if model and Path(model).exists() else model
            for model in (self.init, self.encoder, self.teacher)
        )
        return replace(self, data=locate(self.data), data_dir=data_dir, init=init, encoder=encoder, teacher=teacher)

    @property
    def model_name(self) -> str:
        """The registered model to train."""
        return self.arch or (self.init_model["model"] if self.init_model else models.names(self.kind)[0])

    @property
    def model_latent_dim(self) -> int | None:
        """The latent floats that the model is built with; None is the architecture's default."""
        if self.latent_dim is None and self.init_model:
            found: int | None = self.init_model["config"].get("latent_dim")
            return found
        return self.latent_dim

    @property
    def resolved_recipe(self) -> Recipe:
        """The architecture's recipe with the overrides. Raises UsageError."""
        start: recipes.Start = "trained" if self.init else "new"
        if self.encoder:
            start = "fine-tuned encoder" if self.finetune else "frozen encoder"
        try:
            recipe = recipes.recipe_for(self.model_name, self.recipe, start)
        except ValueError as error:
            raise UsageError(f"`recipe` {self.recipe}: {error}") from None
        if self.init_model:
            # The parameters that `trained_until` names may not be there.
            given = {name: value for name, value in self.init_model["config"].items() if name not in _DECIDED}
            changes = (self.overrides or {}).get("model")
            # Where layers have other shapes, the norms are new and have stored nothing.
            is_changed = isinstance(changes, dict) and _as_json({**given, **changes}) != _as_json(given)
            norms: Literal["batch", "stored"] = "batch" if is_changed else recipe.norms
            recipe = replace(recipe, model=given, trained_until={}, norms=norms)
        overrides = self.overrides or {}
        known = {item.name for item in fields(Recipe)}
        if unknown := [name for name in overrides if name not in known]:
            usable = replace(self, overrides=None).recipe_values
            raise UsageError(f"recipe: there is no {unknown[0] or 'empty name'}, only: {', '.join(usable)}")
        try:
            return recipe.changed(overrides)
        except ValueError as error:
            raise UsageError(f"recipe: {error}") from None

    def value_of(self, name: str) -> Any:
        """An option's value, or a field's of the recipe; None if there is none of this name."""
        return getattr(self, name) if hasattr(self, name) else getattr(self.resolved_recipe, name, None)

    @property
    def recipe_values(self) -> dict[str, Any]:
        """Every field that this training uses; the model's arguments as `model.NAME`, and an autoencoder's
        `latent_dim`. Raises UsageError.
        """
        unused = _without_effect(self)
        recipe = {name: value for name, value in asdict(self.resolved_recipe).items() if name not in unused}
        given = recipe.pop("model")
        known = {name: default for name, default in models.arguments(self.model_name).items() if name not in _DECIDED}
        values = recipe | {f"model.{name}": value for name, value in (known | given).items()}
        if self.kind == "autoencoder":
            values["latent_dim"] = self.latent_dim or models.arguments(self.model_name)["latent_dim"]
        return values

    @property
    def command(self) -> str:
        """The shortest command line that trains the same, but for where files lie; for a program's arrays, the call."""
        if self.data == ARRAYS:
            given = {name: value for name, value in self._given.items() if name != "data"} | (self.overrides or {})
            more = "".join(f", {name}={value!r}" for name, value in given.items())
            return f"cifarctl.train_{self.kind}(out, data=arrays{more})"
        return command_line(self.words)

    @property
    def _given(self) -> dict[str, Any]:
        """The options that differ from their defaults, but for those that `command` leaves out."""
        given = {option.name: getattr(self, option.name) for option in fields(self) if option.name not in _NOT_TRAINING}
        return {name: value for name, value in given.items() if value != getattr(TrainOptions, name)}

    @property
    def words(self) -> list[str]:
        """The words of `command`."""
        given, overrides = self._given, dict(self.overrides or {})
        given |= {name: overrides.pop(name) for name in list(overrides) if name in recipes.WITH_OPTIONS}
        words = ["cifarctl", "train-ae" if self.kind == "autoencoder" else "train-clf"]
        for name, value in given.items():
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        overrides |= {f"model.{name}": value for name, value in overrides.pop("model", {}).items()}
        for name, value in overrides.items():
            words += ["--set", assignment(name, value)]
        return words

    @classmethod
    def from_config(cls, config: dict[str, Any], path: Path) -> "TrainOptions":
        """The options in a run's `config.json`, at `path`. Raises RunDirError."""
        options = config.get("options")
        known = {option.name for option in fields(cls)}
        if not isinstance(options, dict) or set(options) - known - _GONE or "kind" not in options:
            raise RunDirError(f"{path}: its options are not those of this version ({__version__})")
        overrides = options.get("overrides")
        if isinstance(overrides, dict):
            options = {
                **options,
                "overrides": {RENAMED_FIELDS.get(name, name): value for name, value in overrides.items()},
            }
        return cls(**{name: value for name, value in options.items() if name not in _GONE})


def assignment(name: str, value: Any) -> str:
    """A field of the recipe and its value as `--set` takes them."""
    return f"{name}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"


# Options that name a trained model.
MODELS = ("init", "encoder", "teacher")
# What may be given anew to a resumed run: where files lie, which are compared with the run's, and how to compute.
_ANEW = frozenset({"data_dir", "device", "precision", "tensorboard"})


def resumed(given: TrainOptions, stored: TrainOptions, names: Iterable[str]) -> TrainOptions:
    """The options that a run was started with, `stored`, for going on with it, but for what may be given anew.

    names: the options, and fields of the recipe, that `given` is meant to say. Raises UsageError if one of them says
    something else than the run was started with.
    """
    if stored.kind != given.kind:
        raise UsageError(f"`resume`: the run trains a{'n' if stored.kind[0] == 'a' else ''} {stored.kind}")
    given, stored = replace(given, init_model=stored.init_model).located(), stored.located()
    allowed = set(_ANEW) | {model for model in MODELS if getattr(stored, model)}
    if given.source.is_path and stored.source.is_path:
        allowed.add("data")
    anew = {}
    for name in names:
        now, then = given.value_of(name), stored.value_of(name)
        if name == "model":  # those of its arguments that are given
            now = (given.overrides or {}).get("model", {})
            then = {argument: then.get(argument) for argument in now}
        if now == then or _as_json(now) == _as_json(then):  # JSON makes lists of tuples
            continue
        if name not in allowed or (name in MODELS and now is None):
            raise UsageError(
                f"`{name}`: the run was started {'without it' if then is None else f'with {then}'}",
                hint="give what it was started with, or start another run",
            )
        anew[name] = now
    return replace(stored, **anew)


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _without_effect(options: TrainOptions) -> set[str]:
    """The fields of the recipe that this training does not look at."""
    is_classifier, takes_vectors = options.kind == "classifier", _feature_kind(options.model_name) == "vectors"
    on_images = not (takes_vectors and options.encoder and not options.finetune)
    tasks = {
        "fine-tuning": options.finetune,
        "teacher": options.teacher is not None,
        "labels": is_classifier and options.teacher is None,
        "images": on_images,
        "labelled images": is_classifier and on_images,
        "convolutions": is_classifier and not takes_vectors,
        "decay": options.resolved_recipe.optimizer != "muon",
    }
    return recipes.unused_fields({task for task, applies in tasks.items() if applies})


def mismatch(name: str, value: Any, hint: Any) -> str | None:
    """What an option's value should be, in words, if it is not of the type `hint`, or out of range."""
    if get_origin(hint) is Literal:
        return None if value in get_args(hint) else f"one of: {', '.join(get_args(hint))}"
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = tuple(get_origin(kind) or kind for kind in kinds)
    if type(value) not in kinds:
        return " or ".join(_KINDS[kind] for kind in kinds)
    if type(value) is int and value < _LEAST[name]:
        return f"{_LEAST[name]} or more"
    return f"{_MOST_SEED} or less" if name == "seed" and value > _MOST_SEED else None


def check_values(options: TrainOptions) -> None:
    """Raise UsageError on a value of another type, which a Python program may give."""
    for name, hint in get_type_hints(TrainOptions).items():
        if wanted := mismatch(name, value := getattr(options, name), hint):
            raise UsageError(f"`{name}` is {value!r}, not {wanted}")


def _feature_kind(name: str) -> str:
    found = models.model_class(name)
    return found.feature_kind if issubclass(found, Classifier) else "images"


def _check_arguments(name: str, recipe: Recipe) -> None:
    known = {argument: value for argument, value in models.arguments(name).items() if argument not in _DECIDED}
    for argument, value in recipe.model.items():
        if argument not in known:
            raise UsageError(f"recipe: {name} has no argument {argument}, only: {', '.join(known)}")
        if isinstance(known[argument], bool) and not isinstance(value, bool):
            raise UsageError(f"recipe: model.{argument} is {value!r}, not true or false")


def _latent_dim(options: TrainOptions) -> dict[str, Any]:
    return {} if options.model_latent_dim is None else {"latent_dim": options.model_latent_dim}


def _learned_scale(model: Model) -> str | None:
    """The name of a parameter that scales what a norm has made, if one is trained."""
    norms = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.GroupNorm, torch.nn.LayerNorm)
    for name, module in model.named_modules():
        if isinstance(module, norms) and module.weight is not None and module.weight.requires_grad:
            return f"{name}.weight"
    return None


def check(options: TrainOptions) -> None:
    """Raise UsageError on options that cannot be, alone or together, before any work is done."""
    check_values(options)
    kind, name = options.kind, options.model_name
    if name not in models.names(kind):
        raise UsageError(f"`arch` {name}: no {kind} has this name", hint=f"one of: {', '.join(models.names(kind))}")
    if options.teacher and (options.encoder or kind == "autoencoder"):
        raise UsageError("`teacher`: for a classifier of images", hint="leave out the encoder")
    if options.init and options.encoder:
        raise UsageError("`init`: gives all layers, so there is no encoder to choose", hint="leave out one of the two")
    if options.finetune and not options.encoder:
        raise UsageError("`finetune`: there is no encoder to fine-tune")
    recipe = options.resolved_recipe
    if idle := sorted(_without_effect(options) & (options.overrides or {}).keys()):
        raise UsageError(f"no effect in this training: {', '.join(f'`{name}`' for name in idle)}", hint="leave it out")
    _check_arguments(name, recipe)
    try:
        with torch.device("meta"):
            model = models.build(name, **{**recipe.model, **_latent_dim(options)})
    except ValueError as error:
        given = f"`latent_dim` {options.latent_dim}" if options.latent_dim is not None else "the recipe's model"
        raise UsageError(f"{given}: {error}") from None
    except TypeError as error:  # a number where the class expects several, for one
        values = ", ".join(assignment(f"model.{argument}", value) for argument, value in recipe.model.items())
        raise UsageError(
            f"the recipe's {values}: {name} cannot be built with it ({error})",
            hint="`print_recipe` without it shows what the values look like",
        ) from None
    parameters = {parameter for parameter, _ in model.named_parameters()}
    if unknown := next((parameter for parameter in recipe.trained_until if parameter not in parameters), None):
        raise UsageError(f"recipe: trained_until names {unknown}, which {name} does not have")
    if recipe.optimizer == "airbench" and (scale := _learned_scale(model)):
        raise UsageError(
            f"recipe: optimizer airbench has no learning rate for {scale}, a norm's scale",
            hint="adamw and muon have one; give an `lr` that suits it",
        )
    select_precision(options.precision, select_device(options.device))
