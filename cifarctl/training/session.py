"""A training run from its options to its folder: data, model, loop, test, pictures. `train-ae` and `train-clf` both are
this.
"""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cifarctl import weights
from cifarctl.caches import has_temporary_folder, room_for_caches
from cifarctl.data import Arrays, Dataset
from cifarctl.data.splits import choose_shown
from cifarctl.distributed import Ranks, join_ranks, local_device
from cifarctl.errors import Interrupted, TrainingError
from cifarctl.evaluation import AutoencoderReport, ClassifierReport, evaluate_autoencoder, evaluate_classifier
from cifarctl.hardware import Precision, reuse_memory, select_device
from cifarctl.inference import reconstruct
from cifarctl.metrics import METRICS
from cifarctl.models.base import Autoencoder, Classifier, Model
from cifarctl.startup import import_beside, load_gpu_libraries
from cifarctl.training.calibration import calibrate
from cifarctl.training.events import Encoding, EpochDone, Event, Finished, Fitted, Measuring, Started, StepDone
from cifarctl.training.initial_weights import adopted
from cifarctl.training.loop import fit
from cifarctl.training.options import TrainOptions, check
from cifarctl.training.outliers import MIN_VAL, fit_typicality
from cifarctl.training.run_dir import EpochFiles, RunDir
from cifarctl.training.setup import Data, Setup, set_up
from cifarctl.training.tensorboard import TensorBoardLog

__all__ = ["Encoding", "EpochDone", "Event", "Finished", "Fitted", "Measuring", "Started", "StepDone", "train"]


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
    options = adopted(options).located()
    check(options)
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
    setup = set_up(options, device, ranks, open_run, resume=resume, arrays=arrays)
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
        with _naming(setup.run.path):
            yield from _recorded(events, setup)
    else:
        yield from (event for event in events if not isinstance(event, Fitted))


@contextmanager
def _naming(run: Path) -> Iterator[None]:
    """Let an OSError that names no file, as TensorBoard's on a full disk, name the run's folder."""
    try:
        yield
    except OSError as error:
        if error.filename or not error.errno:
            raise
        raise OSError(error.errno, error.strerror, str(run)) from None


def _needed_later(options: TrainOptions) -> list[str]:
    """The modules that a run imports after its start, in that order."""
    board = ["torch.utils.tensorboard"] if options.tensorboard else []
    drawing = ["cifarctl.plots"] if has_temporary_folder() else []
    measuring = ["torchvision.utils", "torchmetrics.functional.image"] if options.kind == "autoencoder" else []
    return ["triton.language", *board, *drawing, *(measuring if drawing else [])]


def _recorded(events: Iterator[Encoding | StepDone | EpochDone | Fitted], setup: Setup) -> Iterator[Event]:
    """The events of a training, while its files are written; then those of its end."""
    run, info = setup.run, setup.info
    board = TensorBoardLog(run.path, setup.hparams) if setup.options.tensorboard else None
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
        yield Measuring("test" if setup.data.test else "val")
        files.write()
        run.take_place()
        # Once more: a run that was killed right after its last checkpoint has an earlier epoch's there.
        weights.save(run.last, fitted.last, info)
        if isinstance(setup.model, Classifier):
            calibrate(setup.model, setup.data.val, setup.precision)
            fit_typicality(setup.model, setup.data.train, setup.data.val, setup.precision)
        summary, remarks = _finish(setup.model, info, run, board, setup.data, fitted)
        remarks = (*_remarks_on_fit(setup, fitted), *remarks)
    except (Interrupted, TrainingError):
        files.write()
        raise
    finally:
        if board:
            board.close()
    run.checkpoint.remove()
    run.close()
    yield Finished(run.path, summary, remarks)


def _remarks_on_fit(setup: Setup, fitted: Fitted) -> tuple[str, ...]:
    """What the model lacks, or is worse in than it could be."""
    val, remarks = len(setup.data.val), []
    if isinstance(setup.model, Classifier) and setup.model.typicality is None:
        remarks.append(f"No typicality score: it needs {MIN_VAL} validation images, and there are {val}")
    metric = METRICS[setup.objective.metric]
    values = {record["epoch"]: record[f"val_{metric.name}"] for record in fitted.history}
    best, kept = max(values, key=values.__getitem__), fitted.best_epoch
    # Two standard errors of an accuracy; 0.1 dB.
    margin = 2 * math.sqrt(values[best] * (1 - values[best]) / val) if metric.name == "accuracy" else 0.1
    if values[best] - values[kept] > margin:
        remarks.append(
            f"The last epoch was kept, which is worse on the validation images ({metric.text(values[kept])}) than "
            f"epoch {best:.0f} ({metric.text(values[best])}); the recipe's keep=best would keep that one"
        )
    return tuple(remarks)


def _log_sample(board: TensorBoardLog, model: Model, val_set: Dataset, epoch: int, precision: Precision) -> None:
    """An autoencoder's reconstructions of eight images, below them; they show what the scalars cannot."""
    if isinstance(model, Autoencoder):
        sample = val_set.images[choose_shown(val_set.labels, 8)]
        shown = torch.cat((sample.float() / 255, reconstruct(model, sample, precision=precision)))
        board.log_images("val/reconstructions", shown, 8, epoch)


def _finish(
    model: Model,
    info: weights.ModelInfo,
    run: RunDir,
    board: TensorBoardLog | None,
    data: Data,
    fitted: Fitted,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Measure the best epoch's model on the test split, or on val if there is none, and write the final files: the
    weights first, since pictures may fail. Returns the summary, and remarks.
    """
    split = "test" if data.test else "val"
    measured_set = (data.test or data.val).to(data.train.images.device)
    report: AutoencoderReport | ClassifierReport
    if isinstance(model, Autoencoder):
        with room_for_caches(run.path):
            report = evaluate_autoencoder(model, measured_set, data.train.images)
    else:
        assert isinstance(model, Classifier)
        report = evaluate_classifier(model, measured_set)
    metrics: dict[str, Any] = dict(report.metrics)
    for name, value in metrics.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise TrainingError(f"the {split} split's {name} is not finite", hint="a lower `lr`, or `precision` fp32")

    best = next(record for record in fitted.history if record["epoch"] == fitted.best_epoch)
    val = {name.removeprefix("val_"): value for name, value in best.items() if name.startswith("val_")}
    figures = {"n": report.n, **metrics}
    of_splits = {"val": val, "test": figures} if data.test else {"val": {**val, **figures}, "test": None}
    measured = {"best_epoch": fitted.best_epoch, **of_splits}
    weights.save(run.model, weights.of_model(model), replace(info, metrics=measured))
    run.write_history(fitted.history)
    remarks: tuple[str, ...] = ()
    try:
        picture = _draw(run.path, report, measured_set, fitted)
    except (OSError, Interrupted):  # a full disk: the run can be resumed once there is room
        raise
    except Exception as error:
        remarks = (f"The pictures could not be drawn ({type(error).__name__}: {error}). The model is complete",)
    if board:
        last_epoch = int(fitted.history[-1]["epoch"])
        if not remarks:
            board.log_picture(f"{split}/{picture.stem}", picture, last_epoch)
        board.log_end(split, metrics, last_epoch)
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
    return summary, remarks


def _draw(folder: Path, report: "AutoencoderReport | ClassifierReport", measured_set: Dataset, fitted: Fitted) -> Path:
    """Draw the learning curves, and what the model made of the measured split; return that picture's path."""
    with room_for_caches(folder):
        from cifarctl import plots  # which imports Matplotlib: no step should wait for it

    if isinstance(report, AutoencoderReport):
        chosen = choose_shown(measured_set.labels, 12)
        figure = plots.reconstructions(measured_set.images[chosen].cpu(), report.reconstructions[chosen])
        picture, curve = folder / "reconstructions.png", "psnr"
    else:
        figure = plots.confusion(report.confusion_matrix, measured_set.classes)
        picture, curve = folder / "confusion.png", "accuracy"
    plots.save(figure, picture)
    plots.save(plots.curves(fitted.history, curve), folder / "curves.png")
    return picture
