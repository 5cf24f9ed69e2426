"""`cifarctl evaluate`."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from cifarctl.cli import options as opt
from cifarctl.cli.output import Output, report_error
from cifarctl.errors import DataError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType
    from torch import Tensor

    from cifarctl.data import Dataset, Source
    from cifarctl.evaluation import AutoencoderReport
    from cifarctl.weights import ModelInfo

BELOW_THRESHOLD = 3
_RATE_IMAGES = 1000  # codecs take a millisecond an image and setting
Split = Literal["train", "val", "test"]
SplitName = StrEnum("SplitName", ["train", "val", "test"])  # typer takes no list of Literal


def evaluate(
    model: opt.ModelPaths = None,
    data: opt.ModelsData = None,
    data_dir: opt.DataDir = None,
    offline: opt.Offline = False,
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
    device: opt.Device = "auto",
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Measure classifiers or autoencoders on splits, in full precision.

    Several models of a kind are compared on the same images, with the difference's interval and p-value.

    Examples:
      cifarctl evaluate -m runs/clf --plots figures
      cifarctl evaluate -m runs/clf --fail-under accuracy=0.9
      cifarctl evaluate -m runs/a -m runs/b
    """
    from cifarctl.cli.download import ensure_data
    from cifarctl.cli.tables import comparison_table, difference_line
    from cifarctl.hardware import select_device

    output = Output(json=json, quiet=quiet)
    thresholds = [_threshold(text) for text in fail_under or []]
    if plots and plots.exists() and not plots.is_dir():
        raise UsageError(f"--plots {plots}: a file, not a folder")
    splits = [cast("Split", name.value) for name in dict.fromkeys(split or [SplitName.test])]
    subjects = _subjects(model or [None], splits, data, data_dir, tta=tta)
    for subject in subjects:
        ensure_data(subject.source, output, offline=offline)
    chosen_device = select_device(device)
    several = len(subjects) * len(splits) > 1
    measured = []
    for name in splits:
        for number, subject in enumerate(subjects):
            if several:
                output.status(f"Measuring {subject.path} on {name} …")
            figures = plots / f"{number}-{subject.source.name}-{name}" if plots and several else plots
            images = subject.source.load(name).to(chosen_device)
            measured.append(_measure(subject, name, images, tta=tta, figures=figures))
    results = [one.result for one in measured]
    differences = [
        _difference(measured[i], measured[j])
        for i in range(len(measured))
        for j in range(i + 1, len(measured))
        if results[i]["split"] == results[j]["split"]
    ]
    if several:
        lines = "\n".join(difference_line(difference) for difference in differences)
        output.result(
            {"results": results, "differences": differences}, lambda: comparison_table(results), lambda: lines
        )
    else:
        output.result(results[0], *_tables(results[0], subjects[0].info.classes))
    if plots:
        output.status(f"Figures: {plots}")
    below = []
    for result in results:
        where = f"{result['model']} on {result['split']}: " if several else ""
        shortfalls = (_shortfall(result["metrics"], name, bound) for name, bound in thresholds)
        below += [where + text for text in shortfalls if text]
    if below:
        report_error("; ".join(below))
        raise typer.Exit(BELOW_THRESHOLD)


@dataclass(frozen=True)
class _Subject:
    """A model to measure, and the data to measure it on."""

    path: Path
    info: "ModelInfo"
    source: "Source"


@dataclass(frozen=True)
class _Measured:
    """result: what JSON shows. scores: (N,), whether each image was right, bool, or its PSNR in dB, float."""

    result: dict[str, Any]
    scores: "Tensor"


def _subjects(
    paths: Sequence[Path | None], splits: list[Split], data: str | None, data_dir: Path | None, *, tta: bool
) -> list[_Subject]:
    """The models with their data, after checking that they can be compared."""
    from cifarctl import weights
    from cifarctl.data import Source

    subjects = []
    for reference in paths:
        path = weights.resolve(reference, "classifier")
        info = weights.read_info(path)
        if tta and info.kind != "classifier":
            raise UsageError(f"--tta: test-time augmentation is for classifiers, and {path} is an autoencoder")
        subjects.append(_Subject(path, info, Source.trained_on(info.data, data, data_dir)))
    first = subjects[0]
    for other in subjects[1:]:
        if other.info.kind != first.info.kind:
            raise UsageError(f"--model: {first.path} is a {first.info.kind} and {other.path} a {other.info.kind}")
        # The seed draws val, and all of the synthetic images; a limit changes train alone.
        drawn_alike = splits == ["test"] and first.source.name != "synthetic"
        drawn_alike |= (other.source.seed, other.source.val_size) == (first.source.seed, first.source.val_size)
        drawn_alike &= other.source.limit == first.source.limit or "train" not in splits
        if other.source.name != first.source.name or not drawn_alike:
            raise UsageError(
                f"--model: {first.path} and {other.path} were trained on other images, so a split is not the same",
                hint="compare them on --split test of one --data",
            )
    return subjects


def _measure(subject: _Subject, split: Split, images: "Dataset", *, tta: bool, figures: Path | None) -> _Measured:
    result: dict[str, Any] = {
        "model": str(subject.path),
        "kind": subject.info.kind,
        "data": subject.source.name,
        "split": split,
        "n": len(images),
    }
    if subject.info.kind == "classifier":
        more, scores = _measure_classifier(subject.path, images, tta=tta, figures=figures)
    else:
        more, scores = _measure_autoencoder(subject.path, images, subject.source, figures=figures)
    return _Measured(result | more, scores)


def _measure_classifier(
    path: Path, images: "Dataset", *, tta: bool, figures: Path | None
) -> "tuple[dict[str, Any], Tensor]":
    from cifarctl import weights
    from cifarctl.evaluation import evaluate_classifier

    model, info = weights.load_classifier(path, images.images.device)
    if info.classes != images.classes:
        raise DataError(
            f"{path}: knows the classes {_listed(info.classes)}, but the data has {_listed(images.classes)}",
            hint="--data names the data set that the model was trained for",
        )
    report = evaluate_classifier(model, images, tta=tta)
    labels = images.labels.cpu()
    if figures:
        from cifarctl import plots

        plots.save(plots.confusion(report.confusion_matrix, images.classes), figures / "confusion.png")
        plots.save(plots.reliability(report.probabilities, labels), figures / "reliability.png")
        if report.metrics["accuracy"] != 1:
            worst = plots.mistakes(images.images.cpu(), labels, report.probabilities, images.classes)
            plots.save(worst, figures / "mistakes.png")
    measured = {
        "tta": tta,
        "metrics": report.metrics,
        "per_class": [asdict(row) for row in report.per_class],
        "confusion_matrix": report.confusion_matrix,
        "images_per_second": round(report.images_per_second, 1),
    }
    return measured, report.probabilities.argmax(1) == labels


def _measure_autoencoder(
    path: Path, images: "Dataset", source: "Source", *, figures: Path | None
) -> "tuple[dict[str, Any], Tensor]":
    from cifarctl import weights
    from cifarctl.evaluation import evaluate_autoencoder

    device = images.images.device
    model, _ = weights.load_autoencoder(path, device)
    train_images = source.load("train").images.to(device)
    report = evaluate_autoencoder(model, images, train_images)
    measured: dict[str, Any] = {
        "metrics": report.metrics,
        "images_per_second": round(report.images_per_second, 1),
    }
    if figures:
        from cifarctl import plots
        from cifarctl.rate import rate_points

        plots.save(_reconstructions(images, report), figures / "reconstructions.png")
        histogram = plots.psnr_histogram(report.image_psnr, report.metrics["pca_psnr"])
        plots.save(histogram, figures / "psnr.png")
        some = images.images[:_RATE_IMAGES]
        points = rate_points(model, some, train_images[:5000])
        plots.save(plots.rate_curve(points, len(some)), figures / "rate.png")
        measured["rate"] = [asdict(point) for point in points]
    return measured, report.image_psnr


def _reconstructions(images: "Dataset", report: "AutoencoderReport") -> "Figure":
    """Twelve random images, the twelve worst and the twelve best of the split, each with its PSNR."""
    import torch

    from cifarctl import plots

    order = report.image_psnr.argsort()
    some = torch.randperm(len(order), generator=torch.Generator().manual_seed(0))
    chosen = {"random": some[:12], "worst": order[:12], "best": order[-12:].flip(0)}
    names = [f"{kind} {images.classes[images.labels[i]]}" for kind, indices in chosen.items() for i in indices.tolist()]
    indices = torch.cat(list(chosen.values()))
    return plots.reconstructions(
        images.images[indices.to(images.images.device)].cpu(), report.reconstructions[indices], names
    )


def _difference(first: _Measured, second: _Measured) -> dict[str, Any]:
    from cifarctl.comparison import compare_accuracy, compare_psnr

    compare = compare_accuracy if first.result["kind"] == "classifier" else compare_psnr
    pair = {"first": first.result["model"], "second": second.result["model"], "split": first.result["split"]}
    return {**pair, **asdict(compare(first.scores, second.scores))}


def _tables(result: dict[str, Any], classes: tuple[str, ...]) -> "list[Callable[[], RenderableType]]":
    from cifarctl.cli.tables import confusion_table, metrics_table, per_class_table

    note = " (drawn shapes: a smoke test, no benchmark)" if result["data"] == "synthetic" else ""
    title = f"{result['model']}: {result['n']:,} {result['split']} images of {result['data']}{note}"
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


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown}, … ({len(names)})" if len(names) > 4 else shown
