"""`cifarctl evaluate`."""

import math
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from cifarctl.cli import options as opt
from cifarctl.cli.output import Output, report_error
from cifarctl.distributed import join_ranks, local_device
from cifarctl.errors import UsageError
from cifarctl.names import portable_name

if TYPE_CHECKING:
    from rich.console import RenderableType

BELOW_THRESHOLD = 3
_REPORT_IMAGES = 1200  # of all sections: at 3 KB each, the page stays under 5 MB
Split = Literal["train", "val", "test"]
SplitName = StrEnum("SplitName", ["train", "val", "test"])  # typer takes no list of Literal


def evaluate(
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
            help="Exit with 3 where a metric is worse than this. May be given several times.",
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
    device: opt.Device = "auto",
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Measure classifiers or autoencoders on splits, in full precision.

    Several models of a kind are compared on the same images, with the difference's interval and p-value. Macro F1 and
    balanced accuracy are means over the classes that have images in the split; a class without any shows "–".

    Examples:
      cifarctl evaluate -m runs/clf --report report.html
      cifarctl evaluate -m runs/clf --fail-under accuracy=0.9
      cifarctl evaluate -m runs/a -m runs/b
    """
    from cifarctl.cli.download import ensure_data
    from cifarctl.cli.measure import Wanted, difference, find_subjects, measure
    from cifarctl.cli.tables import comparison_table, difference_line
    from cifarctl.hardware import select_device
    from cifarctl.wording import model_name

    output = Output(json=json, quiet=quiet)
    thresholds = [_threshold(text) for text in fail_under or []]
    if plots and plots.exists() and not plots.is_dir():
        raise UsageError(f"--plots {plots}: a file, not a folder")
    if report and report.is_dir():
        raise UsageError(f"--report {report}: a folder, not a file")
    splits = [cast("Split", name.value) for name in dict.fromkeys(split or [SplitName.test])]
    subjects = find_subjects(model or [None], splits, data, data_dir, tta=tta)
    for subject in subjects:
        ensure_data(subject.source, output, offline=offline)
    checked = [subject.check_data(name, allow_changed=allow_changed_data) for subject in subjects for name in splits]
    for remark in dict.fromkeys(remark for remarks in checked for remark in remarks):
        output.status(remark)
    chosen_device = local_device(select_device(device))
    opt.remark_unproven(device, output)
    count = len(subjects) * len(splits)
    several = count > 1
    measured = []
    with join_ranks(chosen_device) as ranks:
        if not ranks.is_main:
            plots = report = None
        for name in splits:
            for number, subject in enumerate(subjects):
                if several:
                    output.status(f"Measuring {model_name(str(subject.path))} on {name} …")
                figures = _figure_folder(plots, number, subject.source.name, name) if plots and several else plots
                images = subject.source.load(name).to(chosen_device)
                wanted = Wanted(tta, figures, _REPORT_IMAGES // count if report else 0, ranks)
                measured.append(measure(subject, name, images, wanted))
    if not ranks.is_main:
        return
    results = [one.result for one in measured]
    differences = [
        difference(measured[i], measured[j])
        for i in range(len(measured))
        for j in range(i + 1, len(measured))
        if results[i]["split"] == results[j]["split"]
    ]
    if report:
        from cifarctl.report import write_report

        write_report(report, [one.section for one in measured if one.section], differences)
    if several:
        lines = "\n".join(difference_line(pair) for pair in differences)
        output.result(
            {"results": results, "differences": differences}, lambda: comparison_table(results), lambda: lines
        )
    else:
        output.result(results[0], *_tables(results[0], subjects[0].info.classes))
    if plots:
        output.status(f"Figures: {plots}")
    if report:
        output.status(f"Report: {report}")
    below = []
    for result in results:
        where = f"{model_name(result['model'])} on {result['split']}: " if several else ""
        shortfalls = (_shortfall(result["metrics"], name, bound) for name, bound in thresholds)
        below += [where + text for text in shortfalls if text]
    if below:
        report_error("; ".join(below))
        raise typer.Exit(BELOW_THRESHOLD)


def _figure_folder(plots: Path, number: int, data: str, split: str) -> Path:
    """Where the figures of one of several models and splits go. data: a name, or a folder's path."""
    return plots / portable_name(f"{number}-{Path(data).resolve().name}-{split}")


def _tables(result: dict[str, Any], classes: tuple[str, ...]) -> "list[Callable[[], RenderableType]]":
    from cifarctl.cli.tables import confusion_table, metrics_table, per_class_table
    from cifarctl.wording import model_name

    note = " (drawn shapes: a smoke test, no benchmark)" if result["data"] == "synthetic" else ""
    title = f"{model_name(result['model'])}: {result['n']:,} {result['split']} images of {result['data']}{note}"
    speed = {"images/s": f"{result['images_per_second']:,.0f}"}
    tables: list[Callable[[], RenderableType]] = [lambda: metrics_table(title, result["metrics"], speed)]
    if result["kind"] == "classifier":
        tables.append(lambda: per_class_table(result["per_class"]))
        if len(classes) <= 10:  # more columns do not fit a terminal; --plots draws them
            tables.append(lambda: confusion_table(result["confusion_matrix"], classes))
    return tables


def _threshold(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    with suppress(ValueError):
        if not math.isnan(bound := float(value)):  # nothing is below "not a number": the check would always pass
            return name, bound
    raise UsageError(f"--fail-under {text}: expected METRIC=VALUE", hint="for example accuracy=0.9")


def _shortfall(metrics: dict[str, Any], name: str, bound: float) -> str | None:
    """How the metric misses its bound, or None where it does not."""
    from cifarctl.evaluation import LOWER_IS_BETTER

    value = metrics.get(name)
    if not isinstance(value, int | float):
        scalars = [known for known, found in metrics.items() if isinstance(found, int | float)]
        raise UsageError(f"--fail-under {name}: no such metric", hint=f"one of: {', '.join(scalars)}")
    if value > bound if name in LOWER_IS_BETTER else value < bound:
        return f"{name} is {value:.6g}, {'above' if name in LOWER_IS_BETTER else 'below'} {bound:g}"
    return None
