"""A training run from its options to its folder: data, model, loop, test, pictures. `train-ae` and `train-clf` both are
this.
"""

import hashlib
import math
import platform
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cifarctl import models, weights
from cifarctl.data import Arrays, Dataset, Source
from cifarctl.data.fingerprint import describe_changes
from cifarctl.distributed import Ranks, join_ranks, local_device
from cifarctl.errors import ChangedDataError, Interrupted, RunDirError, TrainingError
from cifarctl.evaluation import (
    AutoencoderReport,
    ClassifierReport,
    evaluate_autoencoder,
    evaluate_classifier,
    require_classes,
)
from cifarctl.hardware import Precision, reuse_memory, select_device, select_precision
from cifarctl.inference import reconstruct
from cifarctl.models.base import Autoencoder, Classifier, Model
from cifarctl.startup import import_beside, load_gpu_libraries
from cifarctl.training.calibration import calibrate
from cifarctl.training.loop import Encoding, EpochDone, Fitted, StepDone, fit
from cifarctl.training.objectives import (
    Classification,
    FrozenLatents,
    FrozenPictures,
    Objective,
    Reconstruction,
    ThawingPictures,
    balanced_weights,
)
from cifarctl.training.options import TrainOptions, check
from cifarctl.training.preflight import check_batch, check_recipe, remarks_on_bits
from cifarctl.training.recipes import Recipe
from cifarctl.training.run_dir import EpochFiles, RunDir
from cifarctl.training.tensorboard import TensorBoardLog
from cifarctl.version import __version__


@dataclass(frozen=True)
class Started:
    """A run is set up. parameters: how many numbers training changes. train, val: sizes. remarks: what the user should
    know of the data, in words.
    """

    run: Path
    model: str
    parameters: int
    device: str
    precision: str
    train: int
    val: int
    resumed: bool
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measuring:
    """Training is over; the test split is being measured."""


@dataclass(frozen=True)
class Finished:
    """A run is complete. summary: what `summary.json` holds."""

    run: Path
    summary: dict[str, Any]


Event = Started | Encoding | StepDone | EpochDone | Measuring | Finished


def train(
    options: TrainOptions,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    numbered: bool = False,
    arrays: Arrays | None = None,
) -> Generator[Event, None, None]:
    """Run the whole training into the folder `out`, yielding what happens. numbered: if that is there, into `out`-2, or
    the next that is not.

    arrays: the data, if `options.data` is `data.arrays.NAME`.
    With `resume`, `options` are those that the run was started with; the data may lie elsewhere, and another device may
    compute. Raises UsageError, RunDirError, DataError (ChangedDataError if it is not the run's data), WeightsError,
    TrainingError, Interrupted, and OSError where a file cannot be written. Under torchrun every process calls this and
    gets the same events, but the first one alone writes and gets Measuring and Finished.
    """
    check(options)
    options = options.located()
    device = local_device(select_device(options.device))
    with join_ranks(device) as ranks, ExitStack() as opened:
        resume = ranks.from_main(resume)  # after a restart, others may have looked at the folder later

        def open_run() -> RunDir:
            run = RunDir(out, resume=resume, overwrite=overwrite, numbered=numbered)
            return opened.enter_context(closing(run))

        yield from _train(options, device, ranks, open_run, resume=resume, arrays=arrays)


def _train(
    options: TrainOptions,
    device: torch.device,
    ranks: Ranks,
    open_run: Callable[[], RunDir],
    *,
    resume: bool,
    arrays: Arrays | None,
) -> Iterator[Event]:
    if device.type == "cpu":
        reuse_memory()
    libraries = load_gpu_libraries(device) if device.type == "cuda" else None
    if libraries:
        import_beside(_needed_later(options))
    setup = _set_up(options, device, ranks, open_run, resume=resume, arrays=arrays)
    yield setup.started()
    if libraries:
        libraries.join()
    events = fit(
        setup.model,
        setup.objective,
        setup.data.train,
        setup.data.val,
        setup.recipe,
        seed=options.seed,
        precision=setup.precision,
        checkpoint=setup.run.checkpoint,
        ranks=ranks,
    )
    if ranks.is_main:
        yield from _recorded(events, setup)
    else:
        yield from (event for event in events if not isinstance(event, Fitted))


@dataclass(frozen=True)
class _Setup:
    """A run that can start. info: what its weights files say. remarks: what the user should know before."""

    options: TrainOptions
    recipe: Recipe
    precision: Precision
    data: "_Data"
    model: Model
    objective: Objective
    run: RunDir
    info: weights.ModelInfo
    remarks: tuple[str, ...]

    def started(self) -> Started:
        """The first event."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        return Started(
            self.run.path,
            self.info.model,
            parameters,
            str(self.data.train.images.device),
            self.precision,
            len(self.data.train),
            len(self.data.val),
            self.run.checkpoint.exists(),
            self.remarks,
        )


def _set_up(
    options: TrainOptions,
    device: torch.device,
    ranks: Ranks,
    open_run: Callable[[], RunDir],
    *,
    resume: bool,
    arrays: Arrays | None,
) -> _Setup:
    """Everything that can refuse a run, and then its folder. open_run: makes or opens that."""
    precision, recipe = select_precision(options.precision, device), options.resolved_recipe
    run = open_run() if resume and ranks.is_main else None
    config_then = ranks.from_main(run.read_config() if run else {}) if resume else {}
    if run:
        check_recipe(config_then, recipe, run.config)
    data = _load(options.source_of(arrays), config_then, device)
    encoder, encoder_sha256 = _given(options.encoder, "autoencoder", config_then.get("encoder_sha256"))
    teacher_path, teacher_sha256 = _given(options.teacher, "classifier", config_then.get("teacher_sha256"))
    teacher = None
    if teacher_path:
        teacher, teacher_info = weights.load_classifier(teacher_path, device)
        require_classes(teacher_info.classes, data.train.classes, teacher_path)
    model, config = _build(options, recipe, data.train, device, encoder)
    check_batch(model, recipe, data.train.images, ranks)
    model.eval().initialize(data.train.images)
    objective = _objective(options, model, recipe, precision, data.train, teacher)

    digests = {"encoder_sha256": encoder_sha256, "teacher_sha256": teacher_sha256}
    computing = {**_config(options, recipe, device, precision), "processes": ranks.size}
    remarks = data.remarks
    if ranks.is_main:
        # A new run's folder is made when nothing is left that could refuse it.
        run = run or open_run()
        remarks += _write_config(run, options, recipe, data, digests, config_then, computing)
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
        training={"command": options.command, "versions": _versions()},
    )
    return _Setup(options, recipe, precision, data, model, objective, run, info, remarks)


def _write_config(
    run: RunDir,
    options: TrainOptions,
    recipe: Recipe,
    data: "_Data",
    digests: dict[str, str | None],
    config_then: dict[str, Any],
    computing: dict[str, Any],
) -> tuple[str, ...]:
    """Write `config.json`, and read the checkpoint to go on from. config_then: that of the run to resume, or empty.
    computing: how this process computes. Returns remarks. Raises RunDirError if the checkpoint is of another run.
    """
    remarks: tuple[str, ...] = ()
    if config_then:
        remarks += remarks_on_bits(config_then, computing)
        how = {name: computing[name] for name in ("options", "device", "precision")}
        config = {**config_then, **how}
    else:
        config = {"id": secrets.token_hex(8), **computing}
    run.checkpoint.belongs_to = _belongs_to(options, recipe, data.description, digests, config)
    if run.checkpoint.exists():
        remarks += tuple(run.checkpoint.read())
    elif config_then:
        run.check_checkpoint()
    if not run.has_lock:
        remarks += (f"{run.path}: its file system has no locks, so let no other process use this folder",)
    run.write_json(run.config, {**config, "data": data.description, **digests})
    return remarks


def _recorded(events: Iterator[Encoding | StepDone | EpochDone | Fitted], setup: _Setup) -> Iterator[Event]:
    """The events of a training, while its files are written; then those of its end."""
    run, info = setup.run, setup.info
    board = TensorBoardLog(run.path) if setup.options.tensorboard else None
    files = EpochFiles(run, info)
    try:
        for event in events:
            if isinstance(event, Fitted):
                fitted = event
                break
            if isinstance(event, EpochDone):
                files.add(event)
                if board:
                    board.log_scalars(event.history[-1])
                    _log_sample(board, setup.model, setup.data.val, int(event.history[-1]["epoch"]), setup.precision)
            yield event
        yield Measuring()
        files.write()
        run.take_place()
        # Once more: a run that was killed right after its last checkpoint has an earlier epoch's there.
        weights.save(run.last, fitted.last, info)
        if isinstance(setup.model, Classifier):
            calibrate(setup.model, setup.data.val, setup.precision)
        summary = _finish(setup.model, info, run, board, setup.data, fitted)
    except (Interrupted, TrainingError):
        files.write()
        raise
    finally:
        if board:
            board.close()
    run.checkpoint.remove()
    run.close()
    yield Finished(run.path, summary)


@dataclass(frozen=True)
class _Data:
    """train, val: on the run's device. test: on the CPU, for the end. description: `Source.describe`."""

    train: Dataset
    val: Dataset
    test: Dataset
    description: dict[str, Any]
    remarks: tuple[str, ...]


def _load(source: Source, config_then: dict[str, Any], device: torch.device) -> _Data:
    """Open and check all splits. config_then: that of the run to resume, if there is one."""
    remarks = source.check()
    description = source.describe()
    if config_then:
        then = config_then.get("data")
        changes = describe_changes(then if isinstance(then, dict) else {}, description, ("train", "test"))
        if changes:
            raise ChangedDataError(
                f"{source.name}: other data than when the run was started: {'; '.join(changes)}",
                hint="bring it back as it was, or start another run",
            )
        if changes is None:
            source.check_early_split()
            remarks += (f"{source.name}: the run noted nothing to compare its data with, so it may have changed",)
        if config_then.get("options", {}).get("compile"):
            remarks += ("the run was started with --compile, which this version does not have: it goes on without",)
    train, val = (source.load(split).to(device) for split in ("train", "val"))
    return _Data(train, val, source.load("test"), description, remarks)


def _given(reference: str | None, kind: models.Kind, sha256_then: str | None) -> tuple[Path | None, str | None]:
    """The weights file of a model that the run learns from, and its SHA-256. Raises RunDirError if a resumed run was
    started with another, WeightsError.
    """
    if reference is None:
        return None, None
    path = weights.resolve(Path(reference), kind)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256_then not in (None, sha256):
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
    elif options.latent_dim is not None:
        config["latent_dim"] = options.latent_dim
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


def _needed_later(options: TrainOptions) -> list[str]:
    """The modules that a run imports after its start, in that order."""
    board = ["torch.utils.tensorboard"] if options.tensorboard else []
    measuring = ["torchvision.utils", "torchmetrics.functional.image"] if options.kind == "autoencoder" else []
    return ["triton.language", *board, *measuring, "cifarctl.plots"]


def _versions() -> dict[str, str]:
    return {"cifarctl": __version__, "torch": torch.__version__, "python": platform.python_version()}


def _log_sample(board: TensorBoardLog, model: Model, val_set: Dataset, epoch: int, precision: Precision) -> None:
    """An autoencoder's reconstructions of eight images, below them; they show what the scalars cannot."""
    if isinstance(model, Autoencoder):
        sample = val_set.images[:8]
        shown = torch.cat((sample.float() / 255, reconstruct(model, sample, precision=precision)))
        board.log_images("val/reconstructions", shown, 8, epoch)


def _finish(
    model: Model,
    info: weights.ModelInfo,
    run: RunDir,
    board: TensorBoardLog | None,
    data: _Data,
    fitted: Fitted,
) -> dict[str, Any]:
    """Measure the best epoch's model on the test split, and write the final files."""
    from cifarctl import plots  # which imports Matplotlib: no step should wait for it

    test_set = data.test.to(data.train.images.device)
    report: AutoencoderReport | ClassifierReport
    if isinstance(model, Autoencoder):
        report = evaluate_autoencoder(model, test_set, data.train.images)
        metrics: dict[str, Any] = dict(report.metrics)
        figure = plots.reconstructions(test_set.images[:12].cpu(), report.reconstructions[:12])
        picture, curve = run.path / "reconstructions.png", "psnr"
    else:
        assert isinstance(model, Classifier)
        report = evaluate_classifier(model, test_set)
        metrics = dict(report.metrics)
        figure = plots.confusion(report.confusion_matrix, test_set.classes)
        picture, curve = run.path / "confusion.png", "accuracy"
    for name, value in metrics.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise TrainingError(f"the test split's {name} is not finite", hint="a lower --lr, or --precision fp32")
    plots.save(figure, picture)
    run.write_history(fitted.history)
    plots.save(plots.curves(fitted.history, curve), run.path / "curves.png")
    if board:
        board.log_picture(f"test/{picture.stem}", picture, int(fitted.history[-1]["epoch"]))

    best = next(record for record in fitted.history if record["epoch"] == fitted.best_epoch)
    val = {name.removeprefix("val_"): value for name, value in best.items() if name.startswith("val_")}
    measured = {"best_epoch": fitted.best_epoch, "val": val, "test": {"n": report.n, **metrics}}
    weights.save(run.model, model.state_dict(), replace(info, metrics=measured))
    summary = {
        "run": str(run.path),
        "model": str(run.model),
        "kind": info.kind,
        "arch": info.model,
        "data": info.data,
        "epochs": int(fitted.history[-1]["epoch"]),
        **measured,
        "training_seconds": fitted.history[-1]["seconds"],
    }
    run.write_json(run.summary, summary)
    return summary
