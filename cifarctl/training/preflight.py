"""What can be refused before a run's folder is made or touched, and what the user should know before it goes on."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor

from cifarctl import models
from cifarctl.data.dataset import to_float
from cifarctl.distributed import Ranks
from cifarctl.errors import RunDirError, UsageError
from cifarctl.models.base import Model
from cifarctl.training import recipes
from cifarctl.training.augment import scale
from cifarctl.training.checkpoint import describe_differences
from cifarctl.training.failures import check_shares
from cifarctl.training.options import RENAMED_FIELDS, TrainOptions, mismatch
from cifarctl.training.recipes import Recipe
from cifarctl.training.run_dir import REPAIR
from cifarctl.version import __version__


def check_batch(model: Model, recipe: Recipe, images: Tensor, ranks: Ranks) -> None:
    """Raise UsageError if the training `images`, uint8 (N, 3, 32, 32), make no batch that `model` can learn from."""
    check_shares(recipe.batch_size, len(images), ranks.size)
    if min(recipe.batch_size, len(images)) // ranks.size > 1:
        return
    trial = copy.deepcopy(model).train()
    image = to_float(images[:1])
    if getattr(model, "encoder", None) is None:  # an autoencoder encodes whole images
        image = scale(image, min((size for _, size in recipe.image_sizes), default=images.shape[-1]))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial(image)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            "one image per step and process: a batch norm of this model needs two or more",
            hint="a larger `batch_size`"
            if recipe.batch_size // ranks.size == 1
            else "a larger `limit`, or more images",
        ) from None


def check_stored_options(config: Mapping[str, Any], path: Path) -> TrainOptions:
    """The options in a run's `config.json`, at `path`. Raises RunDirError if a field is of the wrong type or out of
    range, as it may be after an edit by hand.
    """
    stored = config.get("options")
    hints = get_type_hints(TrainOptions)
    for name, value in stored.items() if isinstance(stored, dict) else ():
        if name in hints and (wanted := mismatch(name, value, hints[name])):
            raise RunDirError(f"{path}: options.{name} is {value!r}, not {wanted}", hint=REPAIR)
    if not isinstance(data := config.get("data") or {}, dict):
        raise RunDirError(f"{path}: data is {data!r}, no description of data", hint=REPAIR)
    options = TrainOptions.from_config(dict(config), path)
    if wrong := _wrong_name(options):
        raise RunDirError(f"{path}: options.{wrong} is {getattr(options, wrong)!r}, which names nothing", hint=REPAIR)
    model = options.init_model
    if model and (model.get("model") not in models.names(options.kind) or not isinstance(model.get("config"), dict)):
        raise RunDirError(f"{path}: options.init_model is {model!r}, no {options.kind}'s architecture", hint=REPAIR)
    try:
        _ = options.resolved_recipe
    except UsageError as error:
        raise RunDirError(f"{path}: options.overrides: {error}", hint=REPAIR) from None
    return options


def _wrong_name(options: TrainOptions) -> str | None:
    """The option that should name something and does not."""
    if options.model_name not in models.names(options.kind):
        return "arch"
    for name in ("data", "encoder", "teacher", "init"):
        if getattr(options, name) == "":
            return name
    return None if options.recipe in recipes.names(options.model_name) else "recipe"


def check_recipe(config: Mapping[str, Any], recipe: Recipe, path: Path) -> None:
    """Raise RunDirError if a run's `config.json`, at `path`, holds another recipe than this version makes of its
    options: it would go on to another model.
    """
    stored = config.get("recipe")
    if not isinstance(stored, dict):
        raise RunDirError(f"{path}: has no recipe", hint=REPAIR)
    defaults = {item.name: value for item in fields(Recipe) if (value := getattr(Recipe, item.name, None)) is not None}
    then: dict[str, Any] = {
        **defaults,
        **{RENAMED_FIELDS.get(str(name), str(name)): value for name, value in stored.items()},
    }
    if differences := describe_differences({"recipe": then}, {"recipe": asdict(recipe)}):
        version = _versions(config).get("cifarctl", "another version")
        if version == __version__:
            raise RunDirError(f"{path}: {'; '.join(differences)}, as its options say", hint=REPAIR)
        raise RunDirError(
            f"{path}: {'; '.join(differences)} in this version ({__version__}), so the run would end as another model",
            hint=f"resume it with cifarctl {version}, or train anew with `overwrite`",
        )


def _versions(config: Mapping[str, Any]) -> dict[str, Any]:
    found = config.get("versions")
    return found if isinstance(found, dict) else {}


def remarks_on_bits(config: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Why a resumed run may end with other bits than without the break: what its `config.json` and `now` say of the
    threads, processes, device, precision and versions.
    """

    def named(values: Mapping[str, Any]) -> dict[str, Any]:
        computing = {name: values[name] for name in ("threads", "processes", "device", "precision") if name in values}
        versions = _versions(values)
        return computing | {f"version of {name}": versions[name] for name in ("cifarctl", "torch") if name in versions}

    if not (differences := describe_differences(named(config), named(now))):
        return ()
    return (f"the last bits may differ from those without the break: {'; '.join(differences)}",)
