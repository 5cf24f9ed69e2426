"""What `train-ae` and `train-clf` share: from options to a run, and a run's events to the terminal."""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cifarctl.cli import options as opt
from cifarctl.cli.output import Output
from cifarctl.cli.progress import ProgressLine, shown_progress
from cifarctl.cli.targets import check_run_folder
from cifarctl.distributed import may_restart, process_number, restarts, torchrun_words
from cifarctl.errors import CifarctlError, Interrupted, ProcessLostError, RunDirError, TrainingError, UsageError
from cifarctl.progress import Progress
from cifarctl.shell import command_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cifarctl.training.options import TrainOptions
    from cifarctl.training.session import Event


def run_training(
    context: typer.Context,
    options: "TrainOptions",
    out: Path | None,
    output: Output,
    *,
    print_recipe: bool,
    resume: bool,
    overwrite: bool,
    offline: bool,
) -> None:
    """Train as `options` say, show it, and give the summary; or only print the recipe."""
    from cifarctl.cli.download import ensure_data
    from cifarctl.training.initial_weights import adopted
    from cifarctl.training.options import assignment, check
    from cifarctl.training.preflight import check_stored_options
    from cifarctl.training.run_dir import RunDir
    from cifarctl.training.session import Started, train
    from cifarctl.training.signals import raised_signals

    if print_recipe:
        options = adopted(options)
        check(options)
        values = options.recipe_values
        output.result(values, lambda: "\n".join(assignment(*item) for item in values.items()))
        return
    command, numbered = str(context.info_name), out is None
    _check_folder_options(out, resume=resume, overwrite=overwrite)
    out = out or Path("runs") / f"{command}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    if restarts() and RunDir.is_resumable(out):  # torchrun repeats the command when a process has failed
        resume, overwrite = True, False
    if process_number() == 0 and not numbered:
        RunDir.check_unused(out)
        if resume and RunDir.is_finished(out):
            raise RunDirError(f"{out}: this run has finished", hint=_hint_to_go_further(options, out))
        RunDir.check_resumable(out) if resume else RunDir.check_free(out, overwrite=overwrite)
    if resume:
        run = RunDir.opened(out)
        options = _resumed(context, options, check_stored_options(run.read_config(), run.config))
    options = adopted(options)
    check(options)
    if options.source.is_path and not resume:
        check_run_folder(out, Path(options.source.name))
    opt.remark_unproven(options.device, output)
    _remark_slow(options, output)
    ensure_data(options.source, output, offline=offline)
    run_path = out if resume else None

    def noted(events: "Iterable[Event]") -> "Iterator[Event]":
        nonlocal run_path
        for event in events:
            if isinstance(event, Started):
                run_path = event.run  # the default name may have got a number
            yield event

    events = train(options, out, resume=resume, overwrite=overwrite, numbered=numbered)
    try:
        with raised_signals(), closing(events):
            summary = _show(noted(events), output)
    except (Interrupted, TrainingError, ProcessLostError) as error:
        if run_path and RunDir.is_resumable(run_path):
            _add_how_to_resume(error, command, run_path)
        raise
    output.result(summary, lambda: _summary_table(summary))


def _add_how_to_resume(error: CifarctlError, command: str, run: Path) -> None:
    """Let the hint of an error that ended a run say how to go on with it, unless it says something else to do."""
    torchrun = torchrun_words()
    line = [*torchrun, *(["-m"] if torchrun else []), "cifarctl", command, "--out", str(run), "--resume"]
    hint = f"go on with: {command_line(line)}"
    if isinstance(error, ProcessLostError) and error.hint and not may_restart():
        error.hint = f"{error.hint}; {hint}"
    error.hint = error.hint or hint


def _hint_to_go_further(given: "TrainOptions", out: Path) -> str:
    """How to train a finished run, at `out`, for more epochs, on the data and the split that it was trained on."""
    from cifarctl.data.arrays import NAME as ARRAYS
    from cifarctl.training.options import TrainOptions
    from cifarctl.training.preflight import check_stored_options
    from cifarctl.training.run_dir import RunDir

    anew = "--overwrite trains anew"
    try:
        run = RunDir.opened(out)
        stored = check_stored_options(run.read_config(), run.config)
    except RunDirError:
        return anew
    if stored.kind != given.kind or stored.encoder:  # nothing can start from what stands on an encoder
        return anew
    epochs = {name: value for name, value in (given.overrides or {}).items() if name == "epochs"}
    further = TrainOptions(
        kind=stored.kind,
        data=stored.data,
        init=str(out),
        val_size=stored.val_size,
        seed=stored.seed,
        limit=stored.limit,
        overrides=epochs,
    )
    if stored.data == ARRAYS:
        return f"to train it further: {further.command}; {anew}"
    folder = ["--data-dir", stored.data_dir] if stored.data_dir else []
    line = command_line([*further.words, *folder, "--out", f"{out}-further"])
    return f"to train it further: {line}; {anew}"


def _check_folder_options(out: Path | None, *, resume: bool, overwrite: bool) -> None:
    if may_restart() and out is None:
        raise UsageError("torchrun --max-restarts: a restart must find the run", hint="name its folder with --out")
    if resume and overwrite:
        raise UsageError("--resume goes on with a run, and --overwrite replaces it", hint="leave one of them out")
    if resume and out is None:
        raise UsageError("--resume: which run?", hint="name its folder with --out")


def _remark_slow(options: "TrainOptions", output: Output) -> None:
    """Say how long a recipe that is made for a GPU takes without one."""
    from cifarctl.hardware import select_device
    from cifarctl.training.recipes import CPU_HOURS_PER_EPOCH

    hours = CPU_HOURS_PER_EPOCH.get((options.model_name, options.recipe), 0.0) * options.resolved_recipe.epochs
    if hours >= 1 and not options.limit and select_device(options.device).type == "cpu":
        output.status(
            f"--recipe {options.recipe} takes about {hours:.0f} hours on two cores, and minutes on a GPU. "
            "Ctrl-C saves the run, and --resume goes on with it"
        )


def _resumed(context: typer.Context, given: "TrainOptions", stored: "TrainOptions") -> "TrainOptions":
    """The stored options, with those given anew that may be, after checking that no other was with another value."""
    from cifarctl.training.options import resumed

    names = [name for name in context.params if opt.is_given(context, name)]
    if "assignments" in names:
        names += [*(given.overrides or {}), *(["latent_dim"] if given.latent_dim is not None else [])]
    try:
        return resumed(given, stored, names)
    except UsageError as error:
        if error.hint:
            error.hint = "leave the option out to resume, or start another run"
        raise


def _show(events: "Iterable[Event]", output: Output) -> dict[str, Any]:
    """Show progress while a run goes on, print a line an epoch, and return the run's summary."""
    from cifarctl.training.loop import Encoding, EpochDone, StepDone
    from cifarctl.training.session import Finished, Measuring, Started

    summary: dict[str, Any] = {}
    with shown_progress(output, lines=False) as line:
        steps = _TrainingProgress(line) if line.is_drawn else None
        for event in events:
            match event:
                case Started():
                    for remark in event.remarks:
                        output.status(remark)
                    verb = "Resuming" if event.resumed else "Training"
                    parameters = f"{event.parameters:,} parameters"
                    output.status(f"{verb} {event.model}, {parameters}, on {event.device} in {event.precision}")
                    output.status(f"{event.train:,} images, {event.val:,} for validation; run folder: {event.run}")
                case Encoding():
                    output.status(f"Encoding {event.images:,} images, once …")
                    line.show(Progress("Encoding"))
                case StepDone():
                    if steps:
                        steps.step(event)
                case EpochDone():
                    if steps:
                        steps.epoch(event.history[-1])
                    output.status(_epoch_line(event))
                case Measuring():
                    output.status(f"Measuring on the {event.split} split …")
                    line.show(Progress("Measuring"))
                case Finished():
                    summary = event.summary
                    for remark in event.remarks:
                        output.status(remark)
    return summary


class _TrainingProgress:
    """Progress with loss, metric, speed and time left. It reads the loss a few times a second: that waits for a GPU."""

    _INTERVAL = 0.25

    def __init__(self, line: ProgressLine) -> None:
        self._line = line
        self._metric: list[str] = []
        self._shown = self._started = time.perf_counter()
        self._first_step: int | None = None

    def step(self, event: Any) -> None:
        now = time.perf_counter()
        if self._first_step is None:
            self._started, self._first_step = now, event.step
        if now - self._shown < self._INTERVAL:
            return
        self._shown = now
        speed = (event.step - self._first_step) * event.batch_size / max(now - self._started, 1e-9)
        seconds = (event.steps - event.step) * event.batch_size / speed if speed else 0
        left = f"{seconds // 60:.0f}:{seconds % 60:02.0f} left" if seconds < 3600 else f"{seconds / 3600:.1f} h left"
        details = [f"loss {event.loss.item():.4g}", *self._metric, f"{speed:,.0f} images/s", left]
        self._line.update(f"epoch {event.epoch}", details, event.step, event.steps)

    def epoch(self, record: dict[str, Any]) -> None:
        self._metric = [_metric_text(record)]


def _epoch_line(event: Any) -> str:
    record, total = event.history[-1], event.epochs
    epoch = f"epoch {record['epoch']:>{len(str(total))}}/{total}"
    measured = f"val {record['val_loss']:.4g}  {_metric_text(record)}{' *' if event.is_best else '  '}"
    if record["step"] == 0:
        return f"{epoch}  before training  {measured}".rstrip()
    speed = f"{record['images_per_second']:,.0f} images/s  {record['seconds']:.0f} s"
    return f"{epoch}  loss {record['train_loss']:.4g}  {measured}  {speed}"


def _metric_text(record: dict[str, Any]) -> str:
    from cifarctl.metrics import METRICS

    name = next(name for name in METRICS if f"val_{name}" in record)
    return f"{METRICS[name].column} {METRICS[name].text(record[f'val_{name}'])}"


def _summary_table(summary: dict[str, Any]) -> "RenderableType":
    from cifarctl.cli.tables import metrics_table
    from cifarctl.wording import measured_on

    split = "test" if summary["test"] else "val"
    metrics = {name: value for name, value in summary[split].items() if name != "loss"}
    n = metrics.pop("n")
    return metrics_table(
        f"{summary['arch']}, {measured_on(n, split, summary['data']['name'])}",
        metrics,
        {
            "kept epoch": f"{summary['best_epoch']} of {summary['epochs']}",
            "training": f"{summary['training_seconds']:.0f} s",
            "model": summary["model"],
        },
    )


def recipe_overrides(assignments: list[str] | None, **values: Any) -> dict[str, Any]:
    """The fields of the recipe that the command line sets. assignments: FIELD=VALUE, with JSON values, numbers between
    commas, or words. Raises UsageError.
    """
    overrides = {name: value for name, value in values.items() if value is not None}
    for assignment in assignments or ():
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}: not FIELD=VALUE", hint="for example --set jitter=0.3")
        group, _, field = name.partition(".")
        fields, key = (overrides.setdefault("model", {}), field) if group == "model" and field else (overrides, name)
        if not isinstance(fields, dict):
            raise UsageError(f"--set {assignment}: model is set to {fields!r} besides", hint="leave that out")
        if key in fields and values.get(name) is not None:
            raise UsageError(
                f"--set {assignment}: --{name.replace('_', '-')} is given too", hint="leave one of them out"
            )
        if key in fields:
            raise UsageError(f"--set {assignment}: {name} is set twice")
        fields[key] = _value(text)
    return overrides


def _value(text: str) -> Any:
    for spelling in (text, f"[{text}]"):
        try:
            return json.loads(spelling)
        except (ValueError, RecursionError):
            continue
    return text
