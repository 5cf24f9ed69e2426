"""From the options of a run to what it needs: data, model, objective, folder. What can refuse a run does so here."""

import hashlib
import platform
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cifarctl import models, weights
from cifarctl.data import Arrays, Dataset, Source
from cifarctl.data.contents import SPLITS
from cifarctl.data.fingerprint import describe_changes, pixel_fingerprint
from cifarctl.data.overlap import remarks_on_copies
from cifarctl.data.source import drew_val
from cifarctl.distributed import Ranks
from cifarctl.errors import ChangedDataError, RunDirError
from cifarctl.evaluation import require_classes
from cifarctl.hardware import Precision, select_precision
from cifarctl.models.base import Autoencoder, Classifier, Model
from cifarctl.training.events import Started
from cifarctl.training.initial_weights import load_initial
from cifarctl.training.learnt_from import remarks_on_model
from cifarctl.training.objectives import (
    Classification,
    FrozenLatents,
    FrozenPictures,
    Objective,
    Reconstruction,
    ThawingPictures,
    balanced_weights,
)
from cifarctl.training.options import TrainOptions
from cifarctl.training.preflight import check_batch, check_recipe, remarks_on_bits
from cifarctl.training.recipes import DEFAULT_RECIPE, Recipe
from cifarctl.training.run_dir import RunDir
from cifarctl.version import __version__
from cifarctl.wording import model_name


@dataclass(frozen=True)
class Data:
    """train, val: on the run's device. test: on the CPU, if there is one. description: `Source.describe`. pixels: of
    image files, `pixel_fingerprint`.
    """

    train: Dataset
    val: Dataset
    test: Dataset | None
    description: dict[str, Any]
    pixels: dict[str, str] | None
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Setup:
    """A run that can start. info: what its weights files say. remarks: what the user should know before."""

    options: TrainOptions
    recipe: Recipe
    device: torch.device
    precision: Precision
    data: Data
    model: Model
    objective: Objective
    run: RunDir
    info: weights.ModelInfo
    remarks: tuple[str, ...]

    @property
    def hparams(self) -> dict[str, Any]:
        """What makes this run another than others, by name; None is what it does not have."""
        names = ("val_size", "limit", "seed", "encoder", "finetune", "teacher", "init")
        given = {name: getattr(self.options, name) for name in names}
        values = {"kind": self.info.kind, "arch": self.info.model, "data": self.options.source.name, **given}
        return {**values, "precision": self.precision, "device": self.device.type, **self.options.recipe_values}

    def started(self) -> Started:
        """The first event."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        return Started(
            self.run.path,
            self.info.model,
            parameters,
            str(self.device),
            self.precision,
            len(self.data.train),
            len(self.data.val),
            self.run.checkpoint.exists(),
            self.remarks,
        )


def set_up(
    options: TrainOptions,
    device: torch.device,
    ranks: Ranks,
    open_run: Callable[[], RunDir],
    *,
    resume: bool,
    arrays: Arrays | None,
) -> Setup:
    """Everything that can refuse a run, and then its folder. open_run: makes the folder, or opens it to resume."""
    precision, recipe = select_precision(options.precision, device), options.resolved_recipe
    run = open_run() if resume and ranks.is_main else None
    resumed_config = ranks.from_main(run.read_config() if run else {}) if resume else {}
    if run:
        check_recipe(resumed_config, recipe, run.config)
    # What a checkpoint replaces is not needed, so it may have gone; but another that is given must be the run's.
    has_checkpoint = ranks.from_main(run.checkpoint.exists() if run else False)
    is_given_anew = options.init != resumed_config.get("options", {}).get("init")
    init = None
    if options.init and (is_given_anew or not has_checkpoint):
        init = load_initial(options.init, options.kind, device, resumed_config.get("init_sha256"))
    data = _load(options.source_of(arrays), resumed_config, device)
    encoder, encoder_sha256 = _weights_to_learn_from(
        options.encoder, "autoencoder", resumed_config.get("encoder_sha256")
    )
    teacher_path, teacher_sha256 = _weights_to_learn_from(
        options.teacher, "classifier", resumed_config.get("teacher_sha256")
    )
    teacher = None
    if teacher_path:
        teacher, teacher_info = weights.load_classifier(teacher_path, device)
        require_classes(teacher_info.classes, data.train.classes, teacher_path)
    model, config = _build(options, recipe, data.train, device, encoder)
    check_batch(model, recipe, data.train.images, ranks)
    model.eval().initialize(data.train.images)
    remarks = data.remarks
    held_out = {"val": data.val, **({"test": data.test} if data.test else {})}
    learnt_from = {init.name: init.info} if init else {}
    if teacher_path:
        learnt_from[model_name(str(teacher_path))] = teacher_info
    for name, known in learnt_from.items():
        remarks += remarks_on_model(name, known, data.description, held_out, options.source.folder)
    if init:
        remarks += init.put_into(model, config, data.train)
        if options.recipe != DEFAULT_RECIPE:
            remarks += (f"recipe {options.recipe}: for new weights; {DEFAULT_RECIPE} is gentler with trained ones",)
        model.useful_untrained = True
    objective = _objective(options, model, recipe, precision, data.train, teacher)

    origin = init.description if init else resumed_config.get("init")
    digests = {
        "encoder_sha256": encoder_sha256,
        "teacher_sha256": teacher_sha256,
        "init_sha256": origin["sha256"] if origin else None,
    }
    computing = {**_config(options, recipe, device, precision), "processes": ranks.size}
    if origin:
        computing["init"] = origin
    if ranks.is_main:
        # A new run's folder is made when nothing is left that could refuse it.
        run = run or open_run()
        remarks += _write_config(run, options, recipe, data, digests, resumed_config, computing)
    # A new run's default name holds the time; and nobody goes on before the folder is ready.
    out, belongs_to = ranks.from_main((run.path, run.checkpoint.belongs_to) if run else (Path(), {}))
    if run is None:
        run = RunDir.opened(out)
        run.checkpoint.belongs_to = belongs_to
    info = weights.ModelInfo(
        options.kind,
        options.model_name,
        config,
        data.train.classes if options.kind == "classifier" else (),
        data.description,
        training={"command": options.command, "versions": _versions(), **({"init": origin} if origin else {})},
    )
    return Setup(options, recipe, device, precision, data, model, objective, run, info, remarks)


def _write_config(
    run: RunDir,
    options: TrainOptions,
    recipe: Recipe,
    data: Data,
    digests: dict[str, str | None],
    resumed_config: dict[str, Any],
    computing: dict[str, Any],
) -> tuple[str, ...]:
    """Write `config.json`, and read the checkpoint to go on from. resumed_config: that of the run to resume, or empty.
    computing: how this process computes. Returns remarks. Raises RunDirError if the checkpoint is of another run.
    """
    remarks: tuple[str, ...] = ()
    if resumed_config:
        remarks += remarks_on_bits(resumed_config, computing)
        how = {name: computing[name] for name in ("options", "device", "precision")}
        config = {**resumed_config, **how}
    else:
        config = {"id": secrets.token_hex(8), **computing}
    run.checkpoint.belongs_to = _belongs_to(options, recipe, data.description, digests, config)
    if run.checkpoint.exists():
        remarks += tuple(run.checkpoint.read())
    elif resumed_config:
        run.check_checkpoint()
    if not run.has_lock:
        remarks += (f"{run.path}: its file system has no locks, so let no other process use this folder",)
    pixels = {"pixels": data.pixels} if data.pixels else {}
    run.write_json(run.config, {**config, "data": data.description, **pixels, **digests})
    return remarks


def _load(source: Source, resumed_config: dict[str, Any], device: torch.device) -> Data:
    """Open and check all splits. resumed_config: that of the run to resume, if there is one."""
    if resumed_config:
        source = replace(source, draws_val=drew_val(resumed_config.get("data") or {}))
    remarks = source.check()
    if source.is_path:
        remarks = (str(source.contents()), *remarks)
    description = source.describe()
    if resumed_config:
        then = resumed_config.get("data")
        changes = describe_changes(then if isinstance(then, dict) else {}, description, SPLITS)
        if changes:
            raise _changed(source, "; ".join(changes))
        if changes is None:
            source.check_early_split()
            remarks += (f"{source.name}: the run noted nothing to compare its data with, so it may have changed",)
        if resumed_config.get("options", {}).get("compile"):
            remarks += ("the run was started with --compile, which this version does not have: it goes on without",)
    splits = {split: source.load(split) for split in SPLITS if source.has(split)}
    # Of archives and arrays, the description has a digest of the contents.
    pixels = pixel_fingerprint(splits.values()) if "files" in description else None
    noted = resumed_config.get("pixels")
    if pixels and isinstance(noted, dict) and noted.get("decoder") == pixels["decoder"] and noted != pixels:
        raise _changed(source, "image files of the same names and sizes have other pixels")
    if source.is_path:
        remarks += tuple(remarks_on_copies(source.name, splits))
    train, val = (splits[split].to(device) for split in SPLITS[:2])
    return Data(train, val, splits.get("test"), description, pixels, remarks)


def _changed(source: Source, how: str) -> ChangedDataError:
    return ChangedDataError(
        f"{source.name}: other data than when the run was started: {how}",
        hint="bring it back as it was, or start another run",
    )


def _weights_to_learn_from(
    reference: str | None, kind: models.Kind, resumed_sha256: str | None
) -> tuple[Path | None, str | None]:
    """The weights file of a model that the run learns from, and its SHA-256. Raises RunDirError if a resumed run was
    started with another, WeightsError.
    """
    if reference is None:
        return None, None
    path = weights.resolve(Path(reference), kind)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if resumed_sha256 not in (None, sha256):
        raise RunDirError(f"{path}: not the {kind} that the run was started with", hint="bring that one back")
    return path, sha256


def _build(
    options: TrainOptions, recipe: Recipe, train_set: Dataset, device: torch.device, encoder_path: Path | None
) -> tuple[Model, dict[str, Any]]:
    """The model with weights drawn by the seed, on `device`, and the configuration that builds it again."""
    config = dict(recipe.model)
    encoder: Autoencoder | None = None
    if options.kind == "classifier":
        config["classes"] = len(train_set.classes)
    elif options.model_latent_dim is not None:
        config["latent_dim"] = options.model_latent_dim
    if encoder_path:
        encoder, encoder_info = weights.load_autoencoder(encoder_path, device)
        config["encoder"] = {"model": encoder_info.model, "config": encoder_info.config}
    torch.manual_seed(options.seed)
    model = models.build(options.model_name, **config)
    model.to(device)
    if encoder is not None:
        assert isinstance(model, Classifier)
        assert model.encoder is not None
        model.encoder.load_state_dict(encoder.state_dict())
        model.encoder.requires_grad_(options.finetune)
    return model, config


def _objective(
    options: TrainOptions,
    model: Model,
    recipe: Recipe,
    precision: Precision,
    train_set: Dataset,
    teacher: Classifier | None,
) -> Objective:
    if isinstance(model, Autoencoder):
        return Reconstruction(model, recipe, options.seed)
    assert isinstance(model, Classifier)
    weights_of_classes = balanced_weights(train_set) if recipe.class_weights == "balanced" else None
    takes_vectors = model.feature_kind == "vectors"
    if not options.encoder or (takes_vectors and options.finetune):
        return Classification(model, recipe, options.seed, weights_of_classes, teacher)
    of_images = ThawingPictures if options.finetune else FrozenPictures
    objective = FrozenLatents if takes_vectors else of_images
    return objective(model, recipe, options.seed, precision, weights_of_classes)


def _config(options: TrainOptions, recipe: Recipe, device: torch.device, precision: str) -> dict[str, Any]:
    return {
        "options": asdict(options),
        "recipe": asdict(recipe),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "versions": _versions(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _belongs_to(
    options: TrainOptions,
    recipe: Recipe,
    data: dict[str, Any],
    digests: Mapping[str, str | None],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """What a checkpoint must have been saved with, if this run is to go on from it."""
    names = ("kind", "seed", "latent_dim", "finetune", "limit", "val_size")
    stated = {name: getattr(options, name) for name in names}
    run = {"run": config["id"]} if "id" in config else {}  # version 0.2 gave it none
    return {**stated, "arch": options.model_name, "recipe": asdict(recipe), "data": data, **digests, **run}


def _versions() -> dict[str, str]:
    return {"cifarctl": __version__, "torch": torch.__version__, "python": platform.python_version()}
