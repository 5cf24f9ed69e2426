"""How long `cifarctl --help` and every `cifarctl COMMAND --help` take, against the smallest two-command Typer program.

    python tests/benchmarks/startup.py [--runs 5]

Prints the median of several runs in turn, in seconds, and the ratio.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TWO_COMMANDS = """
import typer

app = typer.Typer()


@app.command()
def one(name: str = "x") -> None:
    "The first command."


@app.command()
def two(count: int = 1) -> None:
    "The second command."


app()
"""
COMMANDS = ("", "download", "train-ae", "train-clf", "evaluate", "reconstruct", "predict")


def seconds(command: list[str]) -> float:
    """Wall-clock time of one run, as a whole process."""
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    cifarctl = str(Path(sys.executable).with_name("cifarctl"))
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "two.py")
        script.write_text(TWO_COMMANDS)
        commands = {"two-command Typer program": [sys.executable, str(script), "--help"]}
        commands |= {f"cifarctl {name}".strip(): [cifarctl, *name.split(), "--help"] for name in COMMANDS}
        for command in commands.values():  # fills the file cache
            seconds(command)
        # In turn, so that a drift of the machine's speed meets all alike.
        times = [{name: seconds(command) for name, command in commands.items()} for _ in range(runs)]
    medians = {name: statistics.median(run[name] for run in times) for name in commands}
    base = medians["two-command Typer program"]
    print(f"--help, median of {runs} runs")
    for name, median in medians.items():
        print(f"{name:<28}{median:7.3f} s{median / base:7.2f} ×")


if __name__ == "__main__":
    main()
