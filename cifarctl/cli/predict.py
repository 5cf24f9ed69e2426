"""`cifarctl predict`."""

import os
import stat
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifarctl.cli import options as opt
from cifarctl.cli.output import Output, report_error
from cifarctl.cli.path_list import read_path_list
from cifarctl.cli.progress import ProgressLine, shown_progress
from cifarctl.cli.records import (
    DEFAULT_FORMAT,
    FORMATS,
    UNKNOWN,
    UNUSUAL,
    Writer,
    check_format,
    format_of,
    is_unusual,
    open_writer,
)
from cifarctl.cli.targets import check_target
from cifarctl.cli.unfamiliar import HOW_TO_GET_IT, NO_SCORE
from cifarctl.distributed import join_ranks, local_device
from cifarctl.errors import ImageError, UsageError
from cifarctl.hardware import Precision
from cifarctl.progress import Progress
from cifarctl.wording import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cifarctl.data.images import Decoded, ImageFiles
    from cifarctl.models.base import Classifier

    Answer = tuple[dict[str, Any], NDArray[np.uint8] | None]

_BATCH_SIZE, _GPU_BATCH_SIZE = 128, 1024
_BATCHES_PER_SHARE = 4  # that each of several processes gets at a time
_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def predict(
    image: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|DIR|-...",
            help="Files, folders, - for paths on stdin, one per line, or example, a picture that comes with cifarctl.",
        ),
    ],
    model: opt.ClassifierPath = None,
    top_k: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="K",
            help="Classes to show per image, the most likely first.",
            rich_help_panel=opt.OUTPUT_PANEL,
        ),
    ] = 1,
    tta: Annotated[
        bool,
        typer.Option(
            "--tta/--no-tta",
            metavar="",
            help="Average the predictions for six views of each image that the model is unsure of.",
            rich_help_panel=opt.MODEL_PANEL,
        ),
    ] = False,
    reject: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Give no label to images whose typicality, from 0 to 1, is below X.",
            rich_help_panel=opt.OUTPUT_PANEL,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help=f"Images per batch. Default: {_BATCH_SIZE}, or {_GPU_BATCH_SIZE:,} on a GPU.",
            rich_help_panel=opt.RUN_PANEL,
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(FORMATS),
            autocompletion=lambda: list(FORMATS),
            help="Default: by the suffix of --out; without --out, table on a terminal, else jsonl.",
            rich_help_panel=opt.OUTPUT_PANEL,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Write to FILE, not to stdout.", rich_help_panel=opt.OUTPUT_PANEL
        ),
    ] = None,
    show: opt.Show = False,
    device: opt.Device = "auto",
    threads: opt.Threads = None,  # noqa: ARG001 (its callback does it)
    precision: opt.Precision = "auto",
    quiet: opt.Quiet = False,
) -> None:
    """Classify image files with the pretrained model or another.

    Predictions are written as they are computed, in the order of the inputs. If a file cannot be read, its error is
    written instead, the other files are still classified, and the exit code is 1.

    Examples:
      cifarctl predict example --show
      cifarctl predict photo.jpg
      find . -name '*.png' | cifarctl predict - -m runs/clf
    """
    from cifarctl import weights
    from cifarctl.data.images import expand
    from cifarctl.hardware import select_device, select_precision
    from cifarctl.training.signals import raised_signals

    if out is not None and str(out) in _STDOUT:  # written as a file, it would lose what `>>` should keep
        out = None
    format = _chosen_format(format, out)
    if reject is not None and not 0 <= reject <= 1:
        raise UsageError(f"--reject {reject:g}: not from 0 to 1")
    path = weights.resolve(model, "classifier")
    check_target("--out", out, [path, *(Path(name) for name in image if name != "-")])
    chosen_device = local_device(select_device(device))
    output = Output(quiet=quiet)
    opt.remark_unproven(device, output)
    classifier, info = weights.load_classifier(path, chosen_device)
    if top_k > len(info.classes):
        raise UsageError(f"--top-k {top_k}: the model has {len(info.classes)} classes")
    if reject is not None and classifier.typicality is None:
        raise UsageError(f"--reject: {path} {NO_SCORE}", hint=HOW_TO_GET_IT)
    files = expand(_paths(image))
    with join_ranks(chosen_device) as ranks, raised_signals("while classifying"), ExitStack() as writing:
        write = writing.enter_context(open_writer(format, out, top_k)) if ranks.is_main else None
        line = writing.enter_context(_shown_progress(output, out))
        batch_size = batch_size or (_GPU_BATCH_SIZE if chosen_device.type == "cuda" else _BATCH_SIZE)
        classify = partial(
            _classify,
            model=classifier,
            classes=info.classes,
            top_k=top_k,
            reject=reject,
            batch_size=batch_size,
            tta=tta,
            precision=select_precision(precision, chosen_device),
            processes=None if ranks.size == 1 else 0,
        )
        answers = ranks.streamed(iter(files), classify, _BATCHES_PER_SHARE * batch_size)
        total, failed, marked = _write(answers, write, _Classified(line, image), output if show else None)
    if marked and format == "table":
        rarer = f"less like the training images than {1 - UNUSUAL:.0%} of the validation images"
        output.status(f"* typicality below {UNUSUAL}: {rarer}")
    _finish(files, total, failed, output)


def _chosen_format(format: str | None, out: Path | None) -> str:
    """The name of the format. Raises UsageError if there is none of that name, or for that file."""
    if format is not None:
        return check_format(format)
    if out is not None:
        return format_of(out)
    return "table" if sys.stdout.isatty() else DEFAULT_FORMAT


def _shown_progress(output: Output, out: Path | None) -> AbstractContextManager[ProgressLine]:
    """Progress, unless the answers themselves appear on the terminal. What reads them from a pipe may print them there,
    as grep does, so nothing is redrawn then.
    """
    if out is not None:
        return shown_progress(output)
    mode = os.fstat(sys.stdout.fileno()).st_mode
    is_piped = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
    return shown_progress(output, lines=not sys.stdout.isatty(), redraws=not (is_piped or sys.stdout.isatty()))


class _Classified:
    """How many files have an answer. How many there are is counted meanwhile, if none are named on stdin."""

    def __init__(self, line: ProgressLine, arguments: list[str]) -> None:
        self._line = line
        self._done, self._total = 0, 0
        self.add(0)
        if line.is_drawn and "-" not in arguments:
            threading.Thread(target=self._count, args=(arguments,), daemon=True).start()

    def _count(self, arguments: list[str]) -> None:
        from cifarctl.data.images import expand

        with suppress(OSError):  # whoever reads the files says what is wrong with them
            self._total = sum(1 for _ in expand(_paths(arguments)))

    def add(self, answers: int) -> None:
        """Show that there are so many more."""
        self._done += answers
        self._line.show(Progress("Classifying", self._done, self._total, "files"))


def _write(
    batches: "Iterator[list[Answer]]", write: Writer | None, progress: _Classified, preview: Output | None
) -> tuple[int, int, bool]:
    """Write all answers; with `preview`, draw each picture on it, above its line. Returns how many answers there were,
    how many of them were errors, and whether one is unusual. Only the first of several processes gets answers, and
    `write` is there.
    """
    total = failed = 0
    marked = False
    for batch in batches:
        assert write is not None
        for answers in [[answer] for answer in batch] if preview else [batch]:
            for record, pixels in answers:
                if preview and pixels is not None:
                    from cifarctl.cli.preview import show_images

                    show_images([pixels], [f"{record['label'] or UNKNOWN} {record['confidence']:.1%}"], preview)
                total += 1
                failed += "error" in record
                marked |= is_unusual(record)
            write(record for record, _ in answers)
            progress.add(len(answers))
    return total, failed, marked


def _finish(files: "ImageFiles", total: int, failed: int, output: Output) -> None:
    """Say what was left out, and end the program with 1 if a file or a folder gave no answer."""
    if ignored := files.describe_ignored():
        output.status(ignored)
    if failed:
        output.status(f"{failed:,} of {counted(total, 'file')} could not be read")
    if files.empty:
        more = f" (nor in {len(files.empty) - 1} more)" if len(files.empty) > 1 else ""
        report_error(f"{files.empty[0]}: no images in it{more}")
    elif total == 0:
        output.status("No images: nothing to do")
    if failed or files.empty:
        raise typer.Exit(1)


def _paths(arguments: list[str]) -> Iterator[Path]:
    """The paths of the arguments; `-` stands for the paths on stdin, which are read only when they are needed."""
    from cifarctl.data.images import named_image

    for argument in arguments:
        if argument == "-":
            yield from read_path_list(sys.stdin.buffer)
        elif argument:
            yield named_image(argument)
        else:  # Path("") would be the current folder, but "" is rather an unset variable of a shell script
            raise UsageError("IMAGE: an empty name")


def _classify(
    paths: Iterator[Path],
    model: "Classifier",
    classes: tuple[str, ...],
    top_k: int,
    reject: float | None,
    batch_size: int,
    tta: bool,
    precision: Precision,
    processes: int | None,
) -> "Iterator[list[Answer]]":
    """Batches of one record per path, in order, with the image that the model saw. Few batches are in memory at a time.

    Each thread decodes a batch and classifies it on one core: threads that share every layer of the model would wait
    for each other while others decode. On a GPU one more thread classifies for all, so that only one batch's
    activations are in memory.
    """
    import numpy as np
    import torch

    from cifarctl.data.images import image_name, map_files
    from cifarctl.inference import accepted, rank
    from cifarctl.inference import answer as answer_batch

    def classified(images: "list[NDArray[np.uint8]]") -> list[dict[str, Any]]:
        pixels = torch.from_numpy(np.stack(images))
        answers = answer_batch(model, pixels, tta=tta, precision=precision, batch_size=batch_size)
        ranked = rank(answers.logits, classes, top_k)
        typicality = [None] * len(ranked) if answers.typicality is None else answers.typicality.tolist()
        return [
            _record(top, accepted(top[0][0], value, reject), value)
            for top, value in zip(ranked, typicality, strict=True)
        ]

    def answer(batch: list[Path], images: "list[Decoded]") -> "list[Answer]":
        readable = [image for image in images if not isinstance(image, ImageError)]
        records: Iterator[dict[str, Any]] = iter(())
        if readable:
            records = iter(gpu.submit(classified, readable).result() if on_gpu else classified(readable))
        return [
            ({"path": image_name(path), "error": str(image)}, None)
            if isinstance(image, ImageError)
            else ({"path": image_name(path), **next(records)}, image)
            for path, image in zip(batch, images, strict=True)
        ]

    on_gpu = next(model.parameters()).is_cuda
    threads = min(16, torch.get_num_threads())
    # The first batches differ in size, so that the threads do not all decode at the same time: that needs the GIL. On a
    # GPU only one is smaller, so that the first answers come soon: cuDNN chooses its kernels again for each new size.
    shares, whole = ((1,), 8) if on_gpu else (range(1, threads + 1), threads)
    sizes = chain((-(-batch_size * share // whole) for share in shares), repeat(batch_size))
    with ThreadPoolExecutor(1) as gpu:
        yield from map_files(
            answer,
            paths,
            sizes,
            threads,
            threads + 1,
            initializer=partial(torch.set_num_threads, 1),
            processes=processes,
        )


def _record(ranked: list[tuple[str, float]], label: str | None, typicality: float | None) -> dict[str, Any]:
    top = [{"label": label, "confidence": round(confidence, 6)} for label, confidence in ranked]
    rounded = None if typicality is None else round(typicality, 4)
    return {**top[0], "label": label, "typicality": rounded, "top": top}
