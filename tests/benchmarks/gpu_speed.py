"""How long `cifarctl train-clf` trains on a GPU, and how good it gets.

    python tests/benchmarks/gpu_speed.py [--seeds 5] [--epochs N] [--batch-size N] [--lr RATE] [--recipe fast]

Whole runs by the Python interface, one after another in this process, on the data that is there; then test accuracy
without and with test-time augmentation. Seconds are the steps', without validation and test, as `train-clf` reports
them. Those of the first run have in them what CUDA's libraries do once in a process, so that means are of the others:
record scripts warm up, too.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

import cifarctl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float)
    options = vars(parser.parse_args())
    seeds, recipe = options.pop("seeds"), options.pop("recipe")
    overrides = {name: value for name, value in options.items() if value is not None}
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {recipe} {overrides or ''}")
    print(" run seconds accuracy    TTA", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in (0, *range(seeds)):
            run = cifarctl.train_classifier(
                Path(folder, "run"), recipe=recipe, device="cuda", seed=seed, overwrite=True, **overrides
            )
            augmented = cifarctl.evaluate(run.load(), tta=True).metrics["accuracy"]
            rows.append((run.summary["training_seconds"], run.summary["test"]["accuracy"], augmented))
            print(f"{len(rows):>4} {_row(rows[-1])}{'' if len(rows) > 1 else '  (not in the mean)'}", flush=True)
    print(f"mean {_row(tuple(statistics.mean(column) for column in zip(*rows[1:], strict=True)))}")


def _row(values: tuple[float, ...]) -> str:
    seconds, accuracy, augmented = values
    return f"{seconds:7.2f} {accuracy:8.2%} {augmented:6.2%}"


if __name__ == "__main__":
    main()
