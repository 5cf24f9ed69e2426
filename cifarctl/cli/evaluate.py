"""`cifarctl evaluate`."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cifarctl.caches import room_for_caches
from cifarctl.cli import options as opt
from cifarctl.cli.completion import complete_model
from cifarctl.cli.output import Output
from cifarctl.cli.progress import ProgressLine, shown_progress
from cifarctl.cli.targets import check_target
from cifarctl.cli.unfamiliar import check_unfamiliar, read_unfamiliar
from cifarctl.distributed import Ranks, join_ranks, local_device
from cifarctl.errors import UsageError
from cifarctl.files import check_writable
from cifarctl.names import portable_name
from cifarctl.progress import Progress

if TYPE_CHECKING:
    import torch
    from rich.console import RenderableType

    from cifarctl.cli.measure import Measured, ModelOnData
    from cifarctl.data import Dataset, Split

_ONE_BY_ONE = "name a model with -m, or several, each with its own -m"
_REPORT_IMAGES = 1200  # of all sections: at 3 KB each, the page stays under 5 MB
SplitName = StrEnum("SplitName", ["train", "val", "test"])  # `data.Split`: typer takes no list of Literal


def evaluate(
    more: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[MODEL]...",
            autocompletion=complete_model,
            help="More models, as a shell writes for -m runs/*: all are shown in one table.",
        ),
    ] = None,
    model: opt.ModelPaths = None,
    data: opt.ModelsData = None,
    data_dir: opt.DataDir = None,
    offline: opt.Offline = False,
    allow_changed_data: opt.AllowChangedData = False,
    split: Annotated[
        list[SplitName] | None,
        typer.Option(
            help="Which images; val as the model's training drew it. May be given several times. Default: test.",
            rich_help_panel=opt.DATA_PANEL,
        ),
    ] = None,
    tta: Annotated[
        bool,
        typer.Option(
            "--tta/--no-tta",
            metavar="",
            help="Average a classifier over six views of each image that it is unsure of.",
            rich_help_panel=opt.MODEL_PANEL,
        ),
    ] = False,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE",
            help="Exit with 3 if a metric is worse than this. May be given several times.",
            rich_help_panel=opt.OUTPUT_PANEL,
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write figures into this folder.", rich_help_panel=opt.OUTPUT_PANEL),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Write one self-contained page to look at: numbers, charts and images.",
            rich_help_panel=opt.OUTPUT_PANEL,
        ),
    ] = None,
    stored: Annotated[
        bool,
        typer.Option(
            "--stored",
            metavar="",
            help="Measure nothing: show what training measured on its test split, or on val if there is none.",
            rich_help_panel=opt.OUTPUT_PANEL,
        ),
    ] = False,
    unfamiliar: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also measure how well typicality tells the images in this folder, of none of the classes, from "
            "those of the split.",
            rich_help_panel=opt.DATA_PANEL,
        ),
    ] = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,  # noqa: ARG001 (its callback does it)
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Measure classifiers or autoencoders on splits, in full precision.

    Several models of a kind are compared on the same images, with the difference's interval and p-value. Macro F1 and
    balanced accuracy are means over the classes that have images in the split; a class without any shows "–".

    A folder of runs gives one table, the best run first, with each run's state; the exit code is 1 if one of them
    cannot be measured.

    Examples:
      cifarctl evaluate -m runs/clf --report report.html
      cifarctl evaluate -m runs/clf --fail-under accuracy=0.9
      cifarctl evaluate -m runs/a -m runs/b
      cifarctl evaluate -m runs
    """
    from cifarctl.cli.measure import find_models
    from cifarctl.cli.runs import holds_runs, prepare_runs, say_runs_inside, tabulate_runs
    from cifarctl.cli.thresholds import check_thresholds, fail_below, parse_thresholds
    from cifarctl.hardware import select_device
    from cifarctl.training.signals import raised_signals

    output = Output(json=json, quiet=quiet)
    thresholds = parse_thresholds(fail_under)
    _check_targets(plots, report)
    splits = [cast("Split", name.value) for name in dict.fromkeys(split or [SplitName.test])]
    references = [*(model or ()), *(more or ())]
    say_runs_inside(references, output)
    if stored or (more and len(references) > 1) or any(map(holds_runs, references)):
        refused = {
            "--plots": bool(plots),
            "--report": bool(report),
            "--split": len(splits) > 1,
            "--unfamiliar": bool(unfamiliar),
        }
        if stored:
            refused |= {"--tta": tta, "--data": bool(data), "--split": bool(split), "--fail-under": bool(thresholds)}
        for name in (name for name, is_given in refused.items() if is_given):
            raise UsageError(f"{name}: not for a table of {'stored' if stored else 'several'} runs", hint=_ONE_BY_ONE)
        prepare = partial(
            prepare_runs,
            split=splits[0],
            data=data,
            data_dir=data_dir,
            output=output,
            offline=offline,
            allow_changed=allow_changed_data,
        )
        tabulate_runs(references or [None], prepare, splits[0], output, device, thresholds, tta=tta, stored=stored)
        return
    models = find_models(references or [None], splits, data, data_dir, tta=tta)
    for each in models:
        check_thresholds(thresholds, each.info, each.path)
    if unfamiliar:
        check_unfamiliar(unfamiliar, [each.path for each in models])
    _prepare_data(models, splits, output, offline=offline, allow_changed=allow_changed_data)
    chosen_device = local_device(select_device(device))
    opt.remark_unproven(device, output)
    check_writable(plots and plots / "confusion.png", report)
    others = None
    if unfamiliar:
        others, remarks = read_unfamiliar(unfamiliar, chosen_device)
        for remark in remarks:
            output.status(remark)
    room = room_for_caches(*filter(None, (plots, report and report.parent)))
    with join_ranks(chosen_device) as ranks, raised_signals("while measuring"), shown_progress(output) as line, room:
        if not ranks.is_main:
            plots = report = None
        measured = _measure_all(
            models,
            splits,
            output,
            line,
            chosen_device,
            ranks,
            tta=tta,
            plots=plots,
            has_report=report is not None,
            unfamiliar=others,
        )
        differences = _differences(measured)
        if report:
            from cifarctl.report import write_report

            line.show(Progress("Writing the report"))
            write_report(report, [one.section for one in measured if one.section], differences)
    if ranks.is_main:
        _show(measured, differences, output, plots, report)
        fail_below([one.result for one in measured], thresholds)


def _check_targets(plots: Path | None, report: Path | None) -> None:
    if plots and plots.exists() and not plots.is_dir():
        raise UsageError(f"--plots {plots}: a file, not a folder")
    if report and report.is_dir():
        raise UsageError(f"--report {report}: a folder, not a file")
    check_target("--report", report, suffixes=(".html", ".htm"))


def _prepare_data(
    models: "Sequence[ModelOnData]", splits: "Sequence[Split]", output: Output, *, offline: bool, allow_changed: bool
) -> None:
    """Have all data there, check it before anything is measured, and say what is odd with it, once."""
    from cifarctl.cli.download import ensure_data

    for model in models:
        ensure_data(model.source, output, offline=offline)
    checked = [model.check_data(split, allow_changed=allow_changed) for model in models for split in splits]
    for remark in dict.fromkeys(remark for remarks in checked for remark in remarks):
        output.status(remark)


def _measure_all(
    models: "Sequence[ModelOnData]",
    splits: "Sequence[Split]",
    output: Output,
    line: ProgressLine,
    device: "torch.device",
    ranks: Ranks,
    *,
    tta: bool,
    plots: Path | None,
    has_report: bool,
    unfamiliar: "Dataset | None",
) -> "list[Measured]":
    """Each model on each split, the first split first."""
    from cifarctl.cli.measure import MeasureOptions, measure
    from cifarctl.wording import model_name

    count = len(models) * len(splits)
    report_images = _REPORT_IMAGES // count if has_report else 0
    measured: list[Measured] = []
    for split in splits:
        for number, model in enumerate(models):
            figures = plots
            if count > 1:
                output.status(f"Measuring {model_name(str(model.path))} on {split} …")
                figures = plots and _figure_folder(plots, number, model.source.name, split)
                line.prefix = f"{len(measured) + 1} of {count}: "
            line.show(Progress(f"Reading {split} of {model.source.name}"))
            images = model.source.load(split).to(device)
            wanted = MeasureOptions(tta, figures, report_images, ranks, line.show, unfamiliar)
            measured.append(measure(model, split, images, wanted))
            for remark in measured[-1].remarks:
                output.status(remark)
    return measured


def _differences(measured: "Sequence[Measured]") -> list[dict[str, Any]]:
    """Those between models on the same split."""
    from cifarctl.cli.measure import difference

    pairs = combinations(measured, 2)
    return [difference(*pair) for pair in pairs if pair[0].result["split"] == pair[1].result["split"]]


def _show(
    measured: "Sequence[Measured]",
    differences: Sequence[dict[str, Any]],
    output: Output,
    plots: Path | None,
    report: Path | None,
) -> None:
    """Give the results, and say where files were written."""
    from cifarctl.cli.tables import comparison_table, difference_line

    results = [one.result for one in measured]
    if len(results) > 1:
        lines = "\n".join(difference_line(pair) for pair in differences)
        output.result(
            {"results": results, "differences": differences}, lambda: comparison_table(results), lambda: lines
        )
    else:
        output.result(results[0], *_tables(results[0]))
    if plots:
        output.status(f"Figures: {plots}")
    if report:
        output.status(f"Report: {report}")


def _figure_folder(plots: Path, number: int, data: str, split: str) -> Path:
    """The folder for the figures of one of several models and splits. data: a name, or a folder's path."""
    return plots / portable_name(f"{number}-{Path(data).resolve().name}-{split}")


def _tables(result: dict[str, Any]) -> "list[Callable[[], RenderableType]]":
    from cifarctl.cli.tables import confusion_table, metrics_table, per_class_table
    from cifarctl.wording import measured_on, model_name, unfamiliar_rows

    title = f"{model_name(result['model'])}: {measured_on(result['n'], result['split'], result['data'])}"
    speed = {"images/s": f"{result['images_per_second']:,.0f}", **unfamiliar_rows(result)}
    tables: list[Callable[[], RenderableType]] = [lambda: metrics_table(title, result["metrics"], speed)]
    if result["kind"] == "classifier":
        classes = [row["label"] for row in result["per_class"]]
        tables.append(lambda: per_class_table(result["per_class"]))
        if len(classes) <= 10:  # more columns do not fit a terminal; --plots draws them
            tables.append(lambda: confusion_table(result["confusion_matrix"], classes))
    return tables
