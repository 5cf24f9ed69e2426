"""How long `cifarctl train-clf` trains, and how good it gets.

    python tests/benchmarks/train_speed.py [--seeds 5] [--first 0] [--runs DIR] [OPTION OF train-clf ...]

A whole run of the command for each seed, on the data that it finds, then `cifarctl evaluate --tta` on the test split.
Prints the seconds of training (what `train-clf` reports: the steps, without start, validation and test), images/s, test
accuracy without and with test-time augmentation, and this machine's matrix product before and after, in TFLOP/s: bf16,
or fp32 where training is in fp32 for want of it. Seconds × TFLOP/s is what machines can be compared by.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import matmul_tflops

CIFARCTL = str(Path(sys.executable).with_name("cifarctl"))


def trained(run: Path, *arguments: str) -> dict[str, Any]:
    """Train into `run`, what the command prints into a file beside it, and return the run's summary."""
    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_suffix(".txt").open("w") as log:
        command = [CIFARCTL, "train-clf", *arguments, "--out", str(run)]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return summary


def augmented_accuracy(run: Path) -> float:
    command = [CIFARCTL, "evaluate", "--model", str(run), "--tta", "--json", "--quiet"]
    accuracy: float = json.loads(subprocess.check_output(command))["metrics"]["accuracy"]
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--runs", type=Path, help="keep the runs' folders here")
    options, others = parser.parse_known_args()
    print(
        f"train-clf {' '.join(others)}\n{'seed':>4} seconds images/s accuracy    TTA  TFLOP/s  s × TFLOP/s", flush=True
    )
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(options.first, options.first + options.seeds):
            run = (options.runs or Path(temporary)) / f"seed{seed}"
            before = matmul_tflops()
            summary = trained(run, *others, "--seed", str(seed))
            tflops = (before + matmul_tflops()) / 2
            history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            images = sum(record["images_per_second"] * _seconds(history, i) for i, record in enumerate(history))
            augmented = augmented_accuracy(run)
            seconds = summary["training_seconds"]
            rows.append((seconds, images / seconds, summary["test"]["accuracy"], augmented, tflops, seconds * tflops))
            print(f"{seed:>4} {_row(rows[-1])}", flush=True)
    print(f"mean {_row(tuple(statistics.mean(column) for column in zip(*rows, strict=True)))}")


def _seconds(history: list[dict[str, Any]], epoch: int) -> float:
    return float(history[epoch]["seconds"] - (history[epoch - 1]["seconds"] if epoch else 0))


def _row(values: tuple[float, ...]) -> str:
    seconds, speed, accuracy, augmented, tflops, product = values
    return f"{seconds:7.1f} {speed:8,.0f} {accuracy:8.2%} {augmented:6.2%} {tflops:8.2f} {product:12.0f}"


if __name__ == "__main__":
    main()
