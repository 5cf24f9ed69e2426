"""`cifarctl evaluate`."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cifarctl.cli import options as opt
from cifarctl.cli.output import Output, report_error
from cifarctl.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cifarctl.data import Dataset, Source

BELOW_THRESHOLD = 3


def evaluate(
    model: opt.ModelPath = None,
    data: opt.ModelsData = None,
    data_dir: opt.DataDir = None,
    offline: opt.Offline = False,
    split: Annotated[
        Literal["train", "val", "test"],
        typer.Option(help="Which images; val as the model's training drew it.", rich_help_panel=opt.DATA_PANEL),
    ] = "test",
    tta: Annotated[
        bool,
        typer.Option(
            "--tta/--no-tta", help="Average a classifier over six views of each image.", rich_help_panel=opt.MODEL_PANEL
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
    device: opt.Device = "auto",
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Measure a classifier or an autoencoder on a split, in full precision.

    Examples: [cyan]cifarctl evaluate -m runs/clf --plots figures[/cyan],
    [cyan]cifarctl evaluate -m runs/clf --fail-under accuracy=0.9[/cyan]
    """
    from cifarctl import weights
    from cifarctl.cli.download import ensure_data
    from cifarctl.data import Source
    from cifarctl.hardware import select_device

    output = Output(json=json, quiet=quiet)
    thresholds = [_threshold(text) for text in fail_under or []]
    if plots and plots.exists() and not plots.is_dir():
        raise UsageError(f"--plots {plots}: a file, not a folder")
    path = weights.resolve(model, "classifier")
    info = weights.read_info(path)
    if tta and info.kind != "classifier":
        raise UsageError(f"--tta: test-time augmentation is for classifiers, and {path} is an autoencoder")
    source = Source.trained_on(info.data, data, data_dir)
    ensure_data(source, output, offline=offline)
    images = source.load(split).to(select_device(device))
    result: dict[str, Any] = {
        "model": str(path),
        "kind": info.kind,
        "data": source.name,
        "split": split,
        "n": len(images),
    }
    if info.kind == "classifier":
        result |= _measure_classifier(path, images, tta=tta, figures=plots)
        tables = _classifier_tables(result, images.classes)
    else:
        result |= _measure_autoencoder(path, images, source, figures=plots)
        tables = [lambda: _headline(result)]
    below = [text for name, bound in thresholds if (text := _shortfall(result["metrics"], name, bound))]
    output.result(result, *tables)
    if plots:
        output.status(f"Figures: {plots}")
    if below:
        report_error("; ".join(below))
        raise typer.Exit(BELOW_THRESHOLD)


def _measure_classifier(path: Path, images: "Dataset", *, tta: bool, figures: Path | None) -> dict[str, Any]:
    from cifarctl import weights
    from cifarctl.evaluation import evaluate_classifier

    model, info = weights.load_classifier(path, images.images.device)
    if info.classes != images.classes:
        raise DataError(
            f"{path}: knows the classes {_listed(info.classes)}, but the data has {_listed(images.classes)}",
            hint="--data names the data set that the model was trained for",
        )
    report = evaluate_classifier(model, images, tta=tta)
    if figures:
        from cifarctl import plots

        labels = images.labels.cpu()
        plots.save(plots.confusion(report.confusion_matrix, images.classes), figures / "confusion.png")
        plots.save(plots.reliability(report.probabilities, labels), figures / "reliability.png")
        if report.metrics["accuracy"] != 1:
            worst = plots.mistakes(images.images.cpu(), labels, report.probabilities, images.classes)
            plots.save(worst, figures / "mistakes.png")
    return {
        "tta": tta,
        "metrics": report.metrics,
        "per_class": [asdict(row) for row in report.per_class],
        "confusion_matrix": report.confusion_matrix,
        "images_per_second": round(report.images_per_second, 1),
    }


def _measure_autoencoder(path: Path, images: "Dataset", source: "Source", *, figures: Path | None) -> dict[str, Any]:
    from cifarctl import weights
    from cifarctl.evaluation import evaluate_autoencoder

    device = images.images.device
    model, _ = weights.load_autoencoder(path, device)
    report = evaluate_autoencoder(model, images, source.load("train").images.to(device))
    if figures:
        from cifarctl import plots

        shown = images.images[:24].cpu()
        plots.save(plots.reconstructions(shown, report.reconstructions[:24]), figures / "reconstructions.png")
        histogram = plots.psnr_histogram(report.image_psnr, report.metrics["pca_psnr"])
        plots.save(histogram, figures / "psnr.png")
    return {"metrics": report.metrics, "images_per_second": round(report.images_per_second, 1)}


def _headline(result: dict[str, Any]) -> "RenderableType":
    from cifarctl.cli.tables import metrics_table

    note = " (drawn shapes: a smoke test, no benchmark)" if result["data"] == "synthetic" else ""
    return metrics_table(
        f"{result['model']}: {result['n']:,} {result['split']} images of {result['data']}{note}",
        result["metrics"],
        {"images/s": f"{result['images_per_second']:,.0f}"},
    )


def _classifier_tables(result: dict[str, Any], classes: tuple[str, ...]) -> "list[Callable[[], RenderableType]]":
    from cifarctl.cli.tables import confusion_table, per_class_table

    tables: list[Callable[[], RenderableType]] = [
        lambda: _headline(result),
        lambda: per_class_table(result["per_class"]),
    ]
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


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown}, … ({len(names)})" if len(names) > 4 else shown
