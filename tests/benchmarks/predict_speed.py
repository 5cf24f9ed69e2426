"""How fast `cifarctl predict` is on image files, against the bare model and against a DataLoader loop.

    python tests/benchmarks/predict_speed.py FOLDER [--model RUN] [--runs 3]

FOLDER holds image files, CIFAR-10's test split as 10,000 JPEG for example. In turn, several times:

    bare model    forward passes over as many decoded images in memory, in the precision that `predict` chooses
    predict       `predict`'s own path in this process: find, decode, classify, write JSON Lines
    process       the whole command, Python's start and torch's import included
    DataLoader    what tutorials do: ImageFolder-like Dataset, torchvision transforms, fp32, two workers, PyTorch's
                  convolutions; in a process of its own, without the settings for memory that the command makes. Its
                  imports are not counted
    own layers    the same loop with the package's convolutions

Prints medians in images/s, then the command's time for one image against `python -c "import torch"`, and its peak
memory for a tenth of the files and for all.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command does

import torch
from PIL import Image

from cifarctl import weights
from cifarctl.cli import run as cifarctl
from cifarctl.data.images import find_images
from cifarctl.hardware import reuse_memory, select_precision
from cifarctl.inference import predict_logits
from cifarctl.models.layers import Conv3x3

sys.path.insert(0, str(Path(__file__).parent.parent))
from support import watched_memory

LOOPS = ("DataLoader", "own layers")
CIFARCTL = str(Path(sys.executable).with_name("cifarctl"))


class PlainConv(torch.nn.Conv2d):
    """PyTorch's own convolution, called as the package's layers call theirs."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        return self._conv_forward(x, self.weight if weight is None else weight, self.bias)


class Files(torch.utils.data.Dataset[torch.Tensor]):
    """The files' images, resized by torchvision; the model normalises them."""

    def __init__(self, paths: list[Path]) -> None:
        from torchvision import transforms

        self.paths = paths
        self.transform = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            pixels: torch.Tensor = self.transform(image.convert("RGB"))
        return pixels


def tutorial(paths: list[Path], model: torch.nn.Module) -> None:
    loader = torch.utils.data.DataLoader(Files(paths), batch_size=250, num_workers=2)
    with torch.inference_mode():
        for batch in loader:
            model(batch).softmax(1).max(1)


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def peak_memory(command: list[str]) -> int:
    """The most that a command has in memory, in bytes."""
    return watched_memory(subprocess.Popen(command, stdout=subprocess.DEVNULL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", "-m", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--loop", choices=LOOPS, help="Print the seconds of a DataLoader loop, and end.")
    options = parser.parse_args()
    paths = list(find_images(options.folder))
    device = torch.device("cpu")
    model, _ = weights.load_classifier(weights.resolve(options.model, "classifier"), device)
    if options.loop is not None:
        for module in model.modules():
            if isinstance(module, Conv3x3) and options.loop == "DataLoader":
                module.__class__ = PlainConv  # type: ignore[assignment]  # the same weights
        print(seconds(lambda: tutorial(paths, model)))
        return
    reuse_memory()  # as the command does
    precision = select_precision("auto", device)
    images = torch.randint(0, 256, (len(paths), 3, 32, 32), dtype=torch.uint8)
    chosen = ["--model", str(options.model)] if options.model else []

    def loop(name: str) -> float:
        command = [sys.executable, __file__, str(options.folder), *chosen, "--loop", name]
        env = os.environ | {"THP_MEM_ALLOC_ENABLE": "0"}
        return float(subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout)

    ways: dict[str, Callable[[], object]] = {
        "bare model": lambda: predict_logits(model, images, precision=precision),
        "predict": lambda: cifarctl(["predict", str(options.folder), *chosen, "--out", os.devnull]),
        "process": lambda: subprocess.run(
            [CIFARCTL, "predict", str(options.folder), *chosen], stdout=subprocess.DEVNULL, check=True
        ),
    }
    predict_logits(model, images[:1000], precision=precision)
    times = [
        {name: seconds(way) for name, way in ways.items()} | {name: loop(name) for name in LOOPS}
        for _ in range(options.runs)
    ]
    speeds = {name: len(paths) / statistics.median(run[name] for run in times) for name in times[0]}
    print(f"{len(paths):,} files, {precision}, median of {options.runs} runs")
    for name, speed in speeds.items():
        ratios = [speed / speeds[other] for other in ("bare model", "DataLoader")]
        print(
            f"{name:<12}{speed:8,.0f} images/s{ratios[0]:7.2f} × the bare model{ratios[1]:7.2f} × the DataLoader loop"
        )

    one = [CIFARCTL, "predict", str(paths[0]), *chosen]
    cold = {"one image": one, "import torch": [sys.executable, "-c", "import torch"]}
    runs = [
        {
            name: seconds(partial(subprocess.run, command, stdout=subprocess.DEVNULL, check=True))
            for name, command in cold.items()
        }
        for _ in range(2 * options.runs + 1)
    ]
    medians = {name: statistics.median(run[name] for run in runs[1:]) for name in cold}
    ratio = medians["one image"] / medians["import torch"]
    print(f"one image   {medians['one image']:8.3f} s{ratio:7.2f} × import torch ({medians['import torch']:.3f} s)")

    few = [CIFARCTL, "predict", *map(str, paths[::10]), *chosen]
    small, large = (peak_memory(command) for command in (few, [CIFARCTL, "predict", str(options.folder), *chosen]))
    print(f"peak memory {small / 1e6:8,.0f} MB for {len(paths[::10]):,} files, {large / 1e6:,.0f} MB for all", end=": ")
    print(f"{large / small:.2f} ×")


if __name__ == "__main__":
    main()
