"""Where a training step of `cifarctl train-clf` spends its time.

    python tests/benchmarks/train_profile.py [--recipe fast] [--steps 8]

Profiles the recipe's own steps on drawn images, at every side that it scales images to, weighted by the part of the run
that has that side. Prints milliseconds a step and shares of the time in operators. What the package's own convolutions
copy for their products is a row of its own; oneDNN's convolutions have theirs in them.
"""

import argparse
import os
from collections import defaultdict

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command does

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from cifarctl import models
from cifarctl.data.synthetic import draw_synthetic
from cifarctl.hardware import autocast, reuse_memory, select_device, select_precision
from cifarctl.models.classifiers import Airbench
from cifarctl.training.objectives import Classification
from cifarctl.training.optim import build_optimizer
from cifarctl.training.recipes import RECIPES

GROUPS = {
    "convolution": ("convolution_backward", "mkldnn_convolution", "convolution", "_convolution", "conv2d"),
    "matrix products": ("bmm", "mm", "addmm", "linear", "matmul"),
    "max-pool": ("maximum", "ge", "mul", "sub", "amax"),
    "batch norm": ("native_batch_norm", "native_batch_norm_backward"),
    "SiLU": ("silu", "silu_backward"),
    "copies and fills": (
        "copy_",
        "fill_",
        "zero_",
        "index",
        "flip",
        "where",
        "cat",
        "stack",
        "_upsample_bilinear2d_aa",
    ),
}
GROUP_OF = {f"aten::{name}": group for group, names in GROUPS.items() for name in names}
OWN_COPIES = "convolution's copies"
ROWS = ("convolution", "matrix products", OWN_COPIES, *list(GROUPS)[2:], "everything else")


def group_of(event: FunctionEvent) -> str:
    group = GROUP_OF.get(event.name, "everything else")
    if group == "copies and fills":
        node = event.cpu_parent
        while node is not None:
            if node.name in ("FourierConv", "FourierConvBackward", "_SideBySideConv", "_SideBySideConvBackward"):
                return OWN_COPIES
            node = node.cpu_parent
    return group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES["airbench"], default="fast")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    recipe = RECIPES["airbench"][options.recipe]
    reuse_memory()
    device = select_device("cpu")
    precision = select_precision("auto", device)
    data = draw_synthetic(max(recipe.batch_size, 1000), seed=0)
    model = models.build("airbench", **recipe.model).to(memory_format=torch.channels_last)
    assert isinstance(model, Airbench)
    model.initialize(data.images)
    optimizer = build_optimizer(model, recipe)
    objective = Classification(model, recipe, seed=0)
    indices = torch.arange(recipe.batch_size)

    def step(progress: float) -> None:
        with autocast(device, precision):
            x, targets = objective.augment(data.images[indices], data.labels[indices], indices, 0, progress)
            loss = objective.loss(x, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    times: dict[str, float] = defaultdict(float)
    starts = (0.0, *(until for until, _ in recipe.image_sizes))
    for start, end in zip(starts, (*starts[1:], 1.0), strict=True):
        for _ in range(4):
            step(start)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(options.steps):
                step(start)
        for event in profiled.events() or ():
            times[group_of(event)] += (end - start) * event.self_cpu_time_total / 1e3 / options.steps

    total = sum(times.values())
    print(f"train-clf --recipe {options.recipe}, {precision}, batch {recipe.batch_size}: {total:.0f} ms a step")
    for group in ROWS:
        print(f"{group:<20}{times[group]:7.1f} ms{times[group] / total:7.1%}")
    shares = [sum(times[group] for group in ROWS[:count]) / total for count in (2, 3)]
    print(f"convolution and matrix products: {shares[0]:.1%}, with the convolution's copies {shares[1]:.1%}")


if __name__ == "__main__":
    main()
