"""`cifarctl reconstruct`."""

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cifarctl.cli import options as opt
from cifarctl.cli.output import Output, report_error
from cifarctl.cli.progress import ProgressLine, shown_progress
from cifarctl.cli.targets import check_target
from cifarctl.data import Split
from cifarctl.distributed import process_number
from cifarctl.errors import ImageError, UsageError
from cifarctl.names import portable_name, printable
from cifarctl.progress import Progress
from cifarctl.wording import counted

if TYPE_CHECKING:
    from torch import Tensor

    from cifarctl.data import Dataset, Source

_MAX_COUNT = 240


def reconstruct(
    context: typer.Context,
    image: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE|DIR]...",
            help="Files, folders, or example, a picture that comes with cifarctl. Default: images of a split.",
        ),
    ] = None,
    model: opt.AutoencoderPath = None,
    data: opt.ModelsData = None,
    data_dir: opt.DataDir = None,
    offline: opt.Offline = False,
    split: Annotated[Split, typer.Option(help="Which images.", rich_help_panel=opt.DATA_PANEL)] = "test",
    count: Annotated[
        int,
        typer.Option(
            min=1,
            max=_MAX_COUNT,
            metavar="N",
            help="How many images of the split: its first, or if it lies class by class, a sample of all classes.",
            rich_help_panel=opt.DATA_PANEL,
        ),
    ] = 12,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.png|DIR",
            help="A .png file: one grid with labels. A folder: one file per reconstruction. Default: "
            "reconstructions.png, or nothing with --latents.",
            rich_help_panel=opt.OUTPUT_PANEL,
        ),
    ] = None,
    latents: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Write the latents of all images, or of the whole split, with their paths or indices.",
            rich_help_panel=opt.OUTPUT_PANEL,
        ),
    ] = None,
    show: opt.Show = False,
    device: opt.Device = "auto",
    threads: opt.Threads = None,  # noqa: ARG001 (its callback does it)
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Draw images beside their reconstructions by an autoencoder, and the differences.

    Images of another size are resized to 32×32 first.

    Examples:
      cifarctl reconstruct photo.jpg -o out.png
      cifarctl reconstruct -m runs/ae
      cifarctl reconstruct --latents test.safetensors
    """
    if process_number():  # under torchrun the first process does everything
        return
    import torch

    from cifarctl import weights
    from cifarctl.data.splits import choose_shown
    from cifarctl.files import check_writable, save_tensors
    from cifarctl.hardware import select_device
    from cifarctl.inference import decode, encode
    from cifarctl.model_outputs import psnr
    from cifarctl.training.signals import raised_signals

    output = Output(json=json, quiet=quiet)
    if out is None and latents is None:
        out = Path("reconstructions.png")
    if image and (unused := [f"--{name}" for name in ("data", "split", "count") if opt.is_given(context, name)]):
        raise UsageError(f"{', '.join(unused)}: not with images, which are all drawn")
    path = weights.resolve(model, "autoencoder")
    _check_targets(out, latents, [path, *map(Path, image or ())])
    autoencoder, info = weights.load_autoencoder(path, select_device(device))
    opt.remark_unproven(device, output)
    check_writable(out if out is None or out.suffix else out / "0000.png", latents)
    failures: list[str] = []
    origin: dict[str, str]
    source = None if image else _prepared_source(info.data, split, data, data_dir, output, offline=offline)
    with raised_signals("while reconstructing"), shown_progress(output) as line:
        if source is None:
            images, names = _read_files(image or [], failures, output, line)
            stems = [Path(name).stem for name in names]
            every, labels = images, {}
            chosen = torch.arange(len(images))
            origin = {"paths": dumps(names)}
        else:
            line.show(Progress(f"Reading {split} of {source.name}"))
            dataset = source.load(split)
            chosen = choose_shown(dataset.labels, count)
            every, images = dataset.images, dataset.images[chosen]
            names, stems = _names(dataset, chosen)
            labels = {"labels": dataset.labels, "indices": torch.arange(len(dataset))}
            origin = {"data": dumps(source.describe()), "split": split}
        if out and out.suffix and len(images) > _MAX_COUNT:
            raise UsageError(
                f"{len(images)} images: at most {_MAX_COUNT} in a grid", hint="name fewer files, or a folder with --out"
            )
        vectors = encode(autoencoder, every if latents else images, on_event=line.show)
        if latents:
            save_tensors(latents, {"latents": vectors.cpu(), **labels}, {"model": printable(str(path)), **origin})

        outputs = decode(autoencoder, vectors[chosen] if latents else vectors).cpu()
        decibels = psnr((outputs - images.float() / 255).square().flatten(1).mean(1)).tolist()
        if out:
            line.show(Progress(f"Drawing {out}"))
            _write(images, outputs, names, stems, out)
    if show:
        from cifarctl.cli.preview import show_images

        pairs = torch.stack((images, (outputs * 255).round().byte()), dim=1).flatten(0, 1)
        captions = [text for name, value in zip(names, decibels, strict=True) for text in (name, f"{value:.1f} dB")]
        show_images(list(pairs.numpy()), captions, output)
    result: dict[str, Any] = {
        "model": str(path),
        "out": str(out) if out else None,
        "latents": str(latents) if latents else None,
        "n": len(images),
        "psnr_image_mean": sum(decibels) / len(decibels),
        "images": [{"name": name, "psnr": value} for name, value in zip(names, decibels, strict=True)],
    }
    lines = (
        [f"{printable(str(latents))}: {counted(len(every), 'latent')} of {autoencoder.latent_dim} floats"]
        if latents
        else []
    )
    if out:
        drawn = counted(len(images), "image")
        lines.append(f"{printable(str(out))}: {drawn}, PSNR {result['psnr_image_mean']:.2f} dB (mean of the images')")
    output.result(result, lambda: "\n".join(lines))
    if failures:
        report_error(f"{failures[0]}{f' (and {len(failures) - 1} more)' if len(failures) > 1 else ''}")
        raise typer.Exit(1)


def _names(dataset: "Dataset", chosen: "Tensor") -> tuple[list[str], list[str]]:
    """The names of images of a split, and the beginnings of their files' names: by their own files if they have any, or
    else by their numbers.
    """
    indices, labels = chosen.tolist(), [dataset.classes[label] for label in dataset.labels[chosen].tolist()]
    if dataset.paths:
        names = [dataset.paths[i] for i in indices]
        return names, [f"{label} {Path(name).stem}" for label, name in zip(labels, names, strict=True)]
    names = [f"{i} {label}" for i, label in zip(indices, labels, strict=True)]
    return names, names


def _check_targets(out: Path | None, latents: Path | None, read: list[Path]) -> None:
    """Raise UsageError unless both may be written. read: what the command reads."""
    if out and out.suffix and out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: a grid is a .png file", hint="name a .png file, or a folder")
    if out and out.is_dir() and any(each.is_dir() and out.samefile(each) for each in read):
        raise UsageError(f"--out {out}: the pictures are read from this folder", hint="name another folder")
    check_target("--out", out, read)
    check_target("--latents", latents, read, (".safetensors",))


def _prepared_source(
    trained_on: dict[str, Any], split: Split, data: str | None, data_dir: Path | None, output: Output, *, offline: bool
) -> "Source":
    """The data set, downloaded if it must be. Says what is odd with it."""
    from cifarctl.cli.download import ensure_data
    from cifarctl.data import Source

    source = Source.trained_on(trained_on, data, data_dir)
    ensure_data(source, output, offline=offline)
    changed = source.check_unchanged(trained_on, split, allow=True)  # pictures measure nothing
    for remark in filter(None, [*source.remarks(split), changed]):
        output.status(remark)
    return source


def _read_files(
    paths: list[str], failures: list[str], output: Output, line: ProgressLine
) -> "tuple[Tensor, list[str]]":
    """Decode the files -> uint8 (N, 3, 32, 32) and names. Files that cannot be read are added to `failures`."""
    import numpy as np
    import torch

    from cifarctl.data.images import expand, image_name, named_image, read_images

    if "" in paths:  # Path("") would be the current folder, but "" is rather an unset variable of a shell script
        raise UsageError("IMAGE: an empty name")
    decoded, names = [], []
    files = expand(map(named_image, paths))
    for done, (path, image) in enumerate(read_images(files), 1):
        line.show(Progress("Reading images", done, unit="files"))
        if isinstance(image, ImageError):
            failures.append(f"{path}: {image}")
        else:
            decoded.append(image)
            names.append(image_name(path))
    if ignored := files.describe_ignored():
        output.status(ignored)
    failures += [f"{folder}: no images in it" for folder in files.empty]
    if not decoded:
        raise ImageError(failures[0])
    return torch.from_numpy(np.stack(decoded)), names


def _write(images: "Tensor", outputs: "Tensor", names: list[str], stems: list[str], out: Path) -> None:
    if out.suffix:
        from cifarctl.caches import room_for_caches

        with room_for_caches(out.parent):
            from cifarctl import plots

        plots.save(plots.reconstructions(images, outputs, names), out)
        return
    from PIL import Image

    from cifarctl.files import atomic_path

    for i, (output, stem) in enumerate(zip(outputs, stems, strict=True)):
        pixels = (output * 255).round().byte().permute(1, 2, 0).numpy()
        with atomic_path(out / f"{portable_name(f'{i:04d}-{stem}').replace(' ', '-')}.png") as temporary:
            Image.fromarray(pixels).save(temporary)
