"""`evaluate` of many runs at once: which there are in a folder, in what state each is, and one table of them all."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from cifarctl.cli.options import remark_unproven
from cifarctl.cli.output import Output, report_error
from cifarctl.cli.progress import ProgressLine, shown_progress
from cifarctl.distributed import join_ranks, local_device
from cifarctl.errors import DataError, RunDirError, UsageError, WeightsError
from cifarctl.metrics import METRICS, headline
from cifarctl.progress import Progress
from cifarctl.training.run_files import is_ours
from cifarctl.wording import measured_on

if TYPE_CHECKING:
    import torch

    from cifarctl.cli.measure import ModelOnData
    from cifarctl.cli.thresholds import Threshold
    from cifarctl.data import Dataset, Source, Split
    from cifarctl.distributed import Ranks
    from cifarctl.hardware import Device
    from cifarctl.weights import ModelInfo

State = Literal["finished", "unfinished", "running", "damaged", "no run"]
_SUFFIX = ".safetensors"
_WEIGHTS = ("model.safetensors", "checkpoint.safetensors")


@dataclass
class Run:
    """What is known of one of many models.

    path: its weights file, or what the user named. problem: why it cannot be measured; empty if it can. config: of
    `config.json`, empty without one. result: what was measured, as `evaluate --json` shows it. on: the images that it
    was measured on, in words.
    """

    path: Path
    state: State
    problem: str = ""
    info: "ModelInfo | None" = None
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    on: str = ""

    @property
    def row(self) -> dict[str, Any]:
        """As JSON shows it."""
        options, recipe = (self.config.get(name) for name in ("options", "recipe"))
        options, recipe = (value if isinstance(value, dict) else {} for value in (options, recipe))
        row = {
            "model": str(self.path),
            "state": self.state,
            "kind": self.info.kind if self.info else options.get("kind"),
            "arch": self.info.model if self.info else options.get("arch"),
            "recipe": options.get("recipe"),
            "epochs": recipe.get("epochs"),
            "seed": options.get("seed"),
            **self.result,
        }
        return {**row, "error": self.problem} if self.problem else row


def holds_runs(folder: Path) -> bool:
    """Whether `folder` is no run itself, but has runs in it."""
    return any(_runs_in(folder))


def say_runs_inside(references: Sequence[Path], output: Output) -> None:
    """Say which runs are left out since the folder that is named is a run itself."""
    from cifarctl.data.fingerprint import listed

    for folder in dict.fromkeys(references):
        if folder.is_dir() and _is_run(folder) and (inside := [str(each) for each in _folders_of_runs(folder)]):
            output.status(f"{folder}: a run itself, so the runs in it are left out: {listed(inside)}")


def _find_runs(references: Sequence[Path | None]) -> list[Run]:
    """All models that are named, and all in the folders of runs that are named, each once."""
    every = (one for each in references for one in (_runs_in(each) if each and holds_runs(each) else [each]))
    return [_look_at(reference) for reference in dict.fromkeys(every)]


def tabulate_runs(
    references: Sequence[Path | None],
    prepare: "Callable[[Sequence[Run]], list[tuple[Run, ModelOnData]]]",
    split: "Split",
    output: Output,
    device: "Device",
    thresholds: "Sequence[Threshold]",
    *,
    tta: bool,
    stored: bool,
) -> None:
    """Measure many runs, or take what is stored, and give one table. What cannot be measured is a row with its reason,
    and ends the program with 1.
    """
    from cifarctl.cli.tables import runs_table
    from cifarctl.cli.thresholds import check_thresholds, fail_below
    from cifarctl.data.fingerprint import listed
    from cifarctl.hardware import select_device
    from cifarctl.training.signals import raised_signals

    runs = _find_runs(references)
    for folder in dict.fromkeys(each for each in references if each and holds_runs(each)):
        if left_out := [str(each) for each in _left_out(folder) if each not in references]:
            output.status(f"{folder}: the table has the runs directly in it, and leaves out {listed(left_out)}")
    for run in runs:
        if run.info:
            if tta and run.info.kind != "classifier":
                raise UsageError(f"--tta: test-time augmentation is for classifiers, and {run.path} is an autoencoder")
            check_thresholds(thresholds, run.info, run.path)
    if stored:
        _take_stored(runs)
    else:
        ready = prepare(runs)
        chosen_device = local_device(select_device(device))
        remark_unproven(device, output)
        with join_ranks(chosen_device) as ranks, raised_signals("while measuring"), shown_progress(output) as line:
            _measure_runs(ready, split, chosen_device, ranks, line, tta=tta)
        if not ranks.is_main:
            return
    runs = _best_first(runs)
    rows = [run.row for run in runs]
    output.result({"results": rows}, lambda: runs_table(rows, [run.on for run in runs]))
    fail_below([row for row in rows if "metrics" in row], thresholds)
    # An unfinished run has nothing stored yet, which is no failure.
    if failed := [row for row in rows if "error" in row and not (stored and row["state"] in ("unfinished", "running"))]:
        report_error(f"{len(failed)} of {len(rows)} could not be {'read' if stored else 'measured'}")
        raise typer.Exit(1)


def prepare_runs(
    runs: Sequence[Run],
    split: "Split",
    data: str | None,
    data_dir: Path | None,
    output: Output,
    *,
    offline: bool,
    allow_changed: bool,
) -> "list[tuple[Run, ModelOnData]]":
    """The runs that can be measured, with their data, which is there and checked. The others get their problem."""
    from cifarctl.cli.download import ensure_data
    from cifarctl.cli.measure import on_data

    ready: list[tuple[Run, ModelOnData]] = []
    sources: dict[Source, Source] = {}  # each is read once
    remarks: dict[str, None] = {}
    for run in runs:
        if run.info is None:
            continue
        try:
            model = on_data(run.path, run.info, data, data_dir, sources)
            ensure_data(model.source, output, offline=offline)
            remarks |= dict.fromkeys(model.check_data(split, allow_changed=allow_changed))
            ready.append((run, model))
        except (DataError, UsageError, OSError) as error:
            run.problem = str(error)
    for remark in remarks:
        output.status(remark)
    return ready


def _measure_runs(
    ready: "Sequence[tuple[Run, ModelOnData]]",
    split: "Split",
    device: "torch.device",
    ranks: "Ranks",
    line: ProgressLine,
    *,
    tta: bool,
) -> None:
    """Give each run its result, or its problem. The images of one data set are read once, whatever the runs' seeds."""
    from cifarctl.cli.measure import MeasureOptions, images_of, measure
    from cifarctl.training.run_dir import read_config_of

    loaded: dict[Any, Dataset] = {}
    for number, (run, model) in enumerate(ready, 1):
        source = model.source
        line.prefix = f"{number} of {len(ready)}: "
        try:
            images = images_of(source, split)
            labelled = images, source.model_classes if source.is_path else ()
            if labelled not in loaded:
                line.show(Progress(f"Reading {split} of {source.name}"))
                loaded[labelled] = source.load(split).to(device)
            options = MeasureOptions(tta, ranks=ranks, on_event=line.show)
            result = measure(model, split, loaded[labelled], options).result
            if run.config and read_config_of(run.path).get("id") != run.config.get("id"):
                run.problem = f"{run.path}: another run took its place while it was measured"
                continue
            run.result = result
            is_drawn = images.draws_val or source.name == "synthetic"
            on = measured_on(run.result["n"], split, source.name)
            run.on = f"{on}, drawn by seed {images.seed}" if is_drawn else on
        except WeightsError as error:
            run.problem = str(error)
            run.state = "damaged" if run.state == "finished" else run.state
        except (DataError, RunDirError, UsageError, OSError) as error:
            run.problem = str(error)


def _take_stored(runs: Sequence[Run]) -> None:
    """Give each run what its training measured on the test split, or on val if there is none, if it has come so far."""
    for run in runs:
        if not run.info:
            continue
        measured = run.info.metrics
        split = "val" if "test" in measured and measured["test"] is None else "test"
        stored = measured.get(split)
        if not isinstance(stored, dict):
            is_early = run.state in ("unfinished", "running")
            reason = "what is stored is measured at the end of training" if is_early else "it stores no measurement"
            run.problem = f"{run.path}: {reason}"
            continue
        metrics = {name: value for name, value in stored.items() if name in METRICS}
        data, n = str(run.info.data.get("name")), stored.get("n")
        run.result = {"data": data, "split": split, "n": n, "metrics": metrics}
        on = measured_on(n, split, data) if isinstance(n, int) else f"{split} images of {data}"
        run.on = on if split == "test" else f"{on}, which has no test split"


def _best_first(runs: Sequence[Run]) -> list[Run]:
    """By kind and data set, the best before the others; runs without figures come last."""

    def key(run: Run) -> tuple[Any, ...]:
        value = run.result.get("metrics", {}).get(headline(str(run.row["kind"])).name)
        of = run.result.get("data"), run.result.get("split")
        return value is None, str(run.row["kind"]), *map(str, of), -(value or 0)

    return sorted(runs, key=key)


def _runs_in(folder: Path) -> Iterator[Path]:
    """The runs in a folder that is none itself, by name."""
    if folder.is_dir() and not _is_run(folder):
        yield from _folders_of_runs(folder)


def _folders_of_runs(folder: Path) -> Iterator[Path]:
    visible = (each for each in sorted(folder.iterdir()) if not each.name.startswith("."))
    yield from (each for each in visible if each.is_dir() and _is_run(each))


def _is_run(folder: Path) -> bool:
    """Whether a folder is one of our runs, damaged perhaps: other programs give files the same names."""
    found = [is_ours(folder / name) for name in _WEIGHTS if (folder / name).is_file()]
    return is_ours(folder / "config.json") or True in found or (None in found and False not in found)


def _left_out(folder: Path) -> Iterator[Path]:
    """What in a folder of runs holds weights and is no run in it: loose files, and folders with weights deeper."""
    for each in sorted(folder.iterdir()):
        if each.is_dir():
            if not _is_run(each) and any(name.endswith(_SUFFIX) for *_, names in os.walk(each) for name in names):
                yield each
        elif each.suffix == _SUFFIX:
            yield each


def _look_at(reference: Path | None) -> Run:
    from cifarctl import weights

    folder = reference.parent if reference and reference.name == "model.safetensors" else reference
    folder = folder if folder and folder.is_dir() and _is_run(folder) else None
    state, config = _state_of(folder) if folder else ("finished", {})
    try:
        path = weights.resolve(reference, "classifier")
        return Run(path, state, info=weights.read_info(path), config=config)
    except WeightsError as error:
        path = reference or Path("classifier")
        if not folder or state == "finished":
            return Run(path, "damaged" if folder else "no run", str(error), config=config)
        is_there = (folder / "model.safetensors").exists()
        return Run(path, state, str(error) if is_there else f"{folder}: has no model.safetensors yet", config=config)


def _state_of(folder: Path) -> tuple[State, dict[str, Any]]:
    from cifarctl.training.run_dir import RunDir, read_config_of

    if is_ours(folder / "config.json") is False:
        return "finished", {}  # another program's folder with a model of ours
    model = folder / "model.safetensors"
    try:
        # A new run may be about to replace the one that the weights are of.
        config = read_config_of(model) if model.exists() else RunDir.opened(folder).read_config()
    except RunDirError:
        config = {}
    try:
        RunDir.check_unused(folder)
    except RunDirError:
        return "running", config
    return "unfinished" if RunDir.is_resumable(folder) else "finished", config
