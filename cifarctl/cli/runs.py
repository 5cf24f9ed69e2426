"""`evaluate` of many runs at once: which there are in a folder, in what state each is, and one table of them all."""

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

if TYPE_CHECKING:
    import torch

    from cifarctl.cli.thresholds import Threshold
    from cifarctl.data import Dataset, Source, Split
    from cifarctl.distributed import Ranks
    from cifarctl.hardware import Device
    from cifarctl.weights import ModelInfo

State = Literal["finished", "unfinished", "running", "damaged", "no run"]
_FILES = ("model.safetensors", "config.json", "checkpoint.safetensors")


@dataclass
class Run:
    """What is known of one of many models.

    path: its weights file, or what the user named. problem: why it cannot be measured; empty if it can. config: of
    `config.json`, empty without one. result: what was measured, as `evaluate --json` shows it.
    """

    path: Path
    state: State
    problem: str = ""
    info: "ModelInfo | None" = None
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

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


def _find_runs(references: Sequence[Path | None]) -> list[Run]:
    """All models that are named, and all in the folders of runs that are named, each once."""
    every = (one for each in references for one in (_runs_in(each) if each and holds_runs(each) else [each]))
    return [_look_at(reference) for reference in dict.fromkeys(every)]


def tabulate_runs(
    references: Sequence[Path | None],
    prepare: "Callable[[Sequence[Run]], list[tuple[Run, Source]]]",
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
    from cifarctl.hardware import select_device
    from cifarctl.training.signals import raised_signals

    runs = _find_runs(references)
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
    rows = [run.row for run in _best_first(runs)]
    output.result({"results": rows}, lambda: runs_table(rows))
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
) -> "list[tuple[Run, Source]]":
    """The runs that can be measured, with their data, which is there and checked. The others get their problem."""
    from cifarctl.cli.download import ensure_data
    from cifarctl.cli.measure import ModelOnData
    from cifarctl.data import Source

    ready: list[tuple[Run, Source]] = []
    sources: dict[Source, Source] = {}  # each is read once
    remarks: dict[str, None] = {}
    for run in runs:
        if run.info is None:
            continue
        try:
            source = Source.trained_on(run.info.data, data, data_dir)
            source = sources.setdefault(source, source)
            ensure_data(source, output, offline=offline)
            found = ModelOnData(run.path, run.info, source).check_data(split, allow_changed=allow_changed)
            remarks |= dict.fromkeys(found)
            ready.append((run, source))
        except (DataError, UsageError, OSError) as error:
            run.problem = str(error)
    for remark in remarks:
        output.status(remark)
    return ready


def _measure_runs(
    ready: "Sequence[tuple[Run, Source]]",
    split: "Split",
    device: "torch.device",
    ranks: "Ranks",
    line: ProgressLine,
    *,
    tta: bool,
) -> None:
    """Give each run its result, or its problem. The images of one data set are read once, whatever the runs' seeds."""
    from cifarctl.cli.measure import MeasureOptions, ModelOnData, measure

    loaded: dict[Any, Dataset] = {}
    for number, (run, source) in enumerate(ready, 1):
        assert run.info
        line.prefix = f"{number} of {len(ready)}: "
        # A seed draws val, and all of the synthetic images.
        images_of = source.name if split == "test" and source.name != "synthetic" else source
        try:
            if images_of not in loaded:
                line.show(Progress(f"Reading {split} of {source.name}"))
                loaded[images_of] = source.load(split).to(device)
            model = ModelOnData(run.path, run.info, source)
            options = MeasureOptions(tta, ranks=ranks, on_event=line.show)
            run.result = measure(model, split, loaded[images_of], options).result
        except WeightsError as error:
            run.problem = str(error)
            run.state = "damaged" if run.state == "finished" else run.state
        except (DataError, UsageError, OSError) as error:
            run.problem = str(error)


def _take_stored(runs: Sequence[Run]) -> None:
    """Give each run what its training measured on the test split, if it has come so far."""
    for run in runs:
        stored = run.info.metrics.get("test") if run.info else None
        if run.info and isinstance(stored, dict):
            metrics = {name: value for name, value in stored.items() if name in METRICS}
            data = str(run.info.data.get("name"))
            run.result = {"data": data, "split": "test", "n": stored.get("n"), "metrics": metrics}


def _best_first(runs: Sequence[Run]) -> list[Run]:
    """By kind and data set, the best before the others; runs without figures come last."""

    def key(run: Run) -> tuple[Any, ...]:
        value = run.result.get("metrics", {}).get(headline(str(run.row["kind"])).name)
        return value is None, str(run.row["kind"]), str(run.result.get("data")), -(value or 0)

    return sorted(runs, key=key)


def _runs_in(folder: Path) -> Iterator[Path]:
    """The runs in a folder that is none itself, by name."""
    if folder.is_dir() and not _is_run(folder):
        yield from (each for each in sorted(folder.iterdir()) if each.is_dir() and _is_run(each))


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _FILES)


def _look_at(reference: Path | None) -> Run:
    from cifarctl import weights

    folder = reference if reference and reference.is_dir() else None
    state, config = _state_of(folder) if folder else ("finished", {})
    try:
        path = weights.resolve(reference, "classifier")
        return Run(path, state, info=weights.read_info(path), config=config)
    except WeightsError as error:
        path = reference or Path("classifier")
        if state in ("unfinished", "running"):
            return Run(path, state, f"{path}: has no model.safetensors yet", config=config)
        return Run(path, "damaged" if folder and _is_run(folder) else "no run", str(error), config=config)


def _state_of(folder: Path) -> tuple[State, dict[str, Any]]:
    from cifarctl.training.run_dir import RunDir

    try:
        config = RunDir.opened(folder).read_config()
    except RunDirError:
        config = {}
    try:
        RunDir.check_unused(folder)
    except RunDirError:
        return "running", config
    return "unfinished" if RunDir.is_resumable(folder) else "finished", config
