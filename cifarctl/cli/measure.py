"""What `cifarctl evaluate` does for one model and split: measure, draw figures, and collect what a report shows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarctl.distributed import ALONE, Ranks
from cifarctl.errors import ChangedDataError, DataError, UsageError
from cifarctl.progress import OnEvent, Progress, ignore
from cifarctl.wording import with_article

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from cifarctl.data import Dataset, Source, Split
    from cifarctl.evaluation import AutoencoderReport
    from cifarctl.report import Section
    from cifarctl.weights import ModelInfo

_CODEC_IMAGES = 500  # codecs take a millisecond per image and setting


@dataclass(frozen=True)
class ModelOnData:
    """A model to measure, and the data to measure it on."""

    path: Path
    info: "ModelInfo"
    source: "Source"

    @property
    def train_source(self) -> "Source":
        """The data whose training images PCA is fitted on: the model's own, if there are none in `source`."""
        from cifarctl.data import Source

        return self.source if self.source.has("train") else Source.trained_on(self.info.data, None, self.source.folder)

    def check_data(self, split: "Split", *, allow_changed: bool) -> list[str]:
        """Compare the data with what the model was trained on, and say what is odd with it, in words. Raises
        ChangedDataError if `split` would hold other images than in training, unless `allow_changed`, and DataError on a
        folder of other classes.
        """
        from cifarctl.data.overlap import remarks_on_copies
        from cifarctl.data.seen import remark_on_seen
        from cifarctl.evaluation import require_classes

        if self.info.kind == "classifier" and (found := self.source.known_classes):
            require_classes(self.info.classes, found, self.path)
        seen = None
        is_own = not self.source.only_measured
        if split == "test" and is_own and not self.source.has("test") and self.source.has("val"):
            try:
                self.source.remarks(split)
            except DataError as error:
                error.hint = "`split` val measures on the images that its training held out for validation"
                raise
        try:
            remark = self.source.check_unchanged(self.info.data, split, allow=allow_changed)
            if split == "test":
                seen = remark_on_seen(self.source, self.info.data, allow=allow_changed)
        except ChangedDataError as error:
            if not allow_changed:
                error.hint = f"--allow-changed-data measures on {split} all the same"
            raise
        if self.info.kind == "autoencoder" and split == "test" and self.source.has("train"):
            of_train = self.source.changes(self.info.data, "train")
            pca = f"{self.source.name}: PCA is fitted on other images than the model: {'; '.join(of_train or [])}"
            remark = remark or (pca if of_train else None)
        is_new = self.source.is_path and self.source.only_measured
        contents = [str(self.source.contents())] if is_new else []
        if self.source.draws_test:
            contents = [f"{self.source.name}: measured are the images that training on it held out, with all models"]
        # Of its own data, training has said so.
        is_checked = is_new and self.info.kind == "classifier"
        copies = remarks_on_copies(self.source.name, {split: self.source.load(split)}) if is_checked else []
        return [*contents, *self.source.remarks(split), *filter(None, [remark, seen]), *copies]


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure, and what to make beside the numbers.

    tta: average a classifier over six views. figures: a folder for them. report_images: how many images a report's
    section may show; 0 makes no section. ranks: the processes that share out the images. on_event: called with a
    Progress as the work goes on. unfamiliar: images of none of the classes, to tell from the split's.
    """

    tta: bool = False
    figures: Path | None = None
    report_images: int = 0
    ranks: Ranks = ALONE
    on_event: OnEvent = ignore
    unfamiliar: "Dataset | None" = None


@dataclass(frozen=True)
class Measured:
    """result: what JSON shows. scores: (N,), whether each image was right, bool, or its PSNR in dB, float.

    section: of a report, if there is to be one. remarks: what is odd with the result, in words.
    """

    result: dict[str, Any]
    scores: "Tensor"
    section: "Section | None"
    remarks: list[str] = field(default_factory=list)


def on_data(
    path: Path, info: "ModelInfo", data: str | None, data_dir: Path | None, sources: "dict[Source, Source]"
) -> ModelOnData:
    """A model with `data`, or with its own if that is None. sources: of the other models, so that each is read once."""
    from cifarctl.data import Source

    source = Source.trained_on(info.data, data, data_dir, classes=tuple(info.classes))
    return ModelOnData(path, info, sources.setdefault(source, source))


def images_of(source: "Source", split: "Split") -> "Source":
    """What decides which images the split has: equal for two sources if these are the same, in the same order."""
    from cifarctl.data.source import place_of

    is_drawn = split != "test" and "val" not in source.stored
    return replace(
        source,
        name=place_of(source.name),
        # The seed draws val, and all of the synthetic images; a limit changes train alone.
        seed=source.seed if is_drawn or split == "train" or source.name == "synthetic" else 0,
        val_size=source.val_size if is_drawn or split == "train" else None,
        limit=source.limit if split == "train" else None,
        draws_val=is_drawn,
        only_measured=source.only_measured and "all" in source.stored and not source.draws_test,
        draws_test=False,
        model_classes=(),
    )


def find_models(
    paths: Sequence[Path | None], splits: "list[Split]", data: str | None, data_dir: Path | None, *, tta: bool
) -> list[ModelOnData]:
    """The models with their data. Raises UsageError if they cannot be compared."""
    from cifarctl import weights

    models: list[ModelOnData] = []
    sources: dict[Source, Source] = {}  # each is read once
    for reference in paths:
        path = weights.resolve(reference, "classifier")
        info = weights.read_info(path)
        if tta and info.kind != "classifier":
            raise UsageError(f"--tta: test-time augmentation is for classifiers, and {path} is an autoencoder")
        models.append(on_data(path, info, data, data_dir, sources))
    if splits == ["test"]:
        models = _on_held_out(models)
    first = models[0]
    for other in models[1:]:
        if other.info.kind != first.info.kind:
            kinds = [with_article(model.info.kind) for model in (first, other)]
            raise UsageError(f"--model: {first.path} is {kinds[0]} and {other.path} {kinds[1]}")
        for split in splits:
            _check_comparable(first, other, split)
    return models


def _on_held_out(models: Sequence[ModelOnData]) -> list[ModelOnData]:
    """Measure models on the part of data without splits that the training of another one of them held out."""
    from cifarctl.data.source import place_of

    trained_there = {place_of(each.source.name) for each in models if not each.source.only_measured}
    return [
        replace(each, source=replace(each.source, draws_test=True))
        if each.source.only_measured and "all" in each.source.stored and place_of(each.source.name) in trained_there
        else each
        for each in models
    ]


def _check_comparable(first: ModelOnData, other: ModelOnData, split: "Split") -> None:
    """Raise UsageError unless both models would be measured on the same images."""
    one, two = (images_of(model.source, split) for model in (first, other))
    if one == two:
        return
    raise UsageError(
        f"--model: {first.path} and {other.path} were trained on other images, so a split is not the same",
        hint="compare them on --split test of one --data",
    )


def measure(model: ModelOnData, split: "Split", images: "Dataset", options: MeasureOptions) -> Measured:
    """Measure `model` on `images`, its `split`. Raises DataError if the model is for other classes."""
    result: dict[str, Any] = {
        "model": str(model.path),
        "kind": model.info.kind,
        "data": model.source.name,
        "split": split,
        "n": len(images),
        "data_changes": model.source.changes(model.info.data, split),
    }
    kind = _measure_classifier if model.info.kind == "classifier" else _measure_autoencoder
    return kind(model, result, images, options)


def difference(first: Measured, second: Measured) -> dict[str, Any]:
    """The second model's metric minus the first's, on the same images, as JSON shows it."""
    from cifarctl.comparison import COMPARISONS

    compare = COMPARISONS[first.result["kind"]].compare
    pair = {"first": first.result["model"], "second": second.result["model"], "split": first.result["split"]}
    return {**pair, **asdict(compare(first.scores, second.scores))}


def _measure_classifier(
    model: ModelOnData, result: dict[str, Any], images: "Dataset", options: MeasureOptions
) -> Measured:
    from cifarctl import weights
    from cifarctl.evaluation import evaluate_classifier, require_classes
    from cifarctl.training.run_dir import read_history

    classifier, info = weights.load_classifier(model.path, images.images.device)
    require_classes(info.classes, images.classes, model.path)
    history = read_history(model.path) if options.report_images else []
    report = evaluate_classifier(classifier, images, tta=options.tta, ranks=options.ranks, on_event=options.on_event)
    labels = images.labels.cpu()
    if options.figures:
        options.on_event(Progress("Drawing figures"))
        from cifarctl import plots

        plots.save(plots.confusion(report.confusion_matrix, images.classes), options.figures / "confusion.png")
        plots.save(plots.reliability(report.probabilities, labels), options.figures / "reliability.png")
        if report.metrics["accuracy"] != 1:
            worst = plots.mistakes(images.images.cpu(), labels, report.probabilities, images.classes)
            plots.save(worst, options.figures / "mistakes.png")
    result |= {
        "tta": options.tta,
        "metrics": report.metrics,
        "per_class": [asdict(row) for row in report.per_class],
        "confusion_matrix": report.confusion_matrix,
        "images_per_second": round(report.images_per_second, 1),
    }
    remarks = []
    if options.unfamiliar is not None and report.typicality is not None:
        from cifarctl.cli.unfamiliar import measure_unfamiliar, remarks_on_unfamiliar

        result["unfamiliar"] = measure_unfamiliar(classifier, report.typicality, options.unfamiliar.images)
        remarks = remarks_on_unfamiliar(options.unfamiliar, images, report.typicality)
    section = None
    if options.report_images:
        from cifarctl.report import classifier_section

        options.on_event(Progress("Drawing the report's charts"))
        section = classifier_section(
            result, images, report.probabilities, history, options.report_images, report.typicality
        )
    return Measured(result, report.probabilities.argmax(1) == labels, section, remarks)


def _measure_autoencoder(
    model: ModelOnData, result: dict[str, Any], images: "Dataset", options: MeasureOptions
) -> Measured:
    from cifarctl import weights
    from cifarctl.evaluation import evaluate_autoencoder
    from cifarctl.training.run_dir import read_history

    device = images.images.device
    autoencoder, _ = weights.load_autoencoder(model.path, device)
    history = read_history(model.path) if options.report_images else []
    options.on_event(Progress(f"Reading train of {model.train_source.name}"))
    train_images = model.train_source.load("train").images.to(device)
    report = evaluate_autoencoder(autoencoder, images, train_images, ranks=options.ranks, on_event=options.on_event)
    result |= {
        "metrics": report.metrics,
        "images_per_second": round(report.images_per_second, 1),
    }
    points = []
    some = images.images[:_CODEC_IMAGES]
    if options.figures or options.report_images:
        from cifarctl.rate_distortion import measure_rate_distortion

        points = measure_rate_distortion(autoencoder, some, train_images[:5000], on_event=options.on_event)
        result["rate"] = [asdict(point) for point in points]
    if options.figures:
        options.on_event(Progress("Drawing figures"))
        from cifarctl import plots

        plots.save(_reconstructions(images, report), options.figures / "reconstructions.png")
        histogram = plots.psnr_histogram(report.image_psnr, report.metrics["psnr"], report.metrics["pca_psnr"])
        plots.save(histogram, options.figures / "psnr.png")
        plots.save(plots.rate_distortion(points, len(some)), options.figures / "rate.png")
    section = None
    if options.report_images:
        from cifarctl.report import autoencoder_section

        options.on_event(Progress("Drawing the report's charts"))
        section = autoencoder_section(result, images, report, history, points, len(some))
    return Measured(result, report.image_psnr, section)


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
