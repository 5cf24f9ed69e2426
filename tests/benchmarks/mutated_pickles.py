"""Whether the reader of batch pickles survives damaged and hostile files: it must execute nothing and stay small.

    python tests/benchmarks/mutated_pickles.py [--count 10000] [--seed 0] [--images 20]

Prints how the variants ended, and the memory of the worst beside that of the honest file. Exits with 1 where one of
them was not refused with a DataError or read to a dictionary, executed something, or took twice the honest memory.
An audit hook of the interpreter watches: it sees every import, every opened file and every process.
"""

import argparse
import collections
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

from cifarctl.data.batch_pickle import read_batch
from cifarctl.errors import DataError

sys.path.insert(0, str(Path(__file__).parent.parent))
from mutations import bombs, mutate
from py2_pickle import batch


def watch(seen: list[str]) -> None:
    """Note in `seen` what the interpreter does from now on beside computing."""
    events = ("compile", "exec", "import", "marshal", "open", "os.", "pickle.", "socket.", "subprocess.", "ctypes.")
    sys.addaudithook(lambda event, _: seen.append(event) if event.startswith(events) else None)


def outcome(data: bytes) -> tuple[str, int]:
    """How reading `data` ended, and its memory: the file's bytes and the peak of what was allocated."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        result = read_batch(data)
        ended = "dictionary" if type(result) is dict else f"not a dictionary: {type(result).__name__}"
    except DataError as error:
        ended = "DataError" if "\n" not in str(error) else "DataError of several lines"
    except Exception as error:
        ended = f"escaped: {type(error).__name__}: {error}"
    return ended, len(data) + tracemalloc.get_traced_memory()[1] - before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=20, help="in the honest file; the bombs are as large as 10,000")
    options = parser.parse_args()
    images = np.random.default_rng(options.seed).integers(0, 256, (options.images, 3, 32, 32), np.uint8)
    honest = batch(images, [i % 10 for i in range(options.images)], "training batch 1 of 5")
    seen: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        marker = Path(folder, "executed")
        variants = mutate(honest, str(marker), options.seed, options.count)
        ends: collections.Counter[str] = collections.Counter()
        tracemalloc.start()
        honest_end, honest_memory = outcome(honest)
        outcome(b"\x80\x02Z.")  # what the first error imports
        watch(seen)
        started, worst = time.perf_counter(), 0
        for variant in variants:
            seen_before = len(seen)
            ended, memory = outcome(variant)
            if len(seen) > seen_before:
                ended = f"executed: {seen[seen_before:]}"
            ends[ended] += 1
            worst = max(worst, memory)
        seconds = time.perf_counter() - started
        bomb_size = 30_900_000
        bomb_worst = 0
        for bomb in bombs(bomb_size):
            ended, memory = outcome(bomb)
            ends[ended] += 1
            bomb_worst = max(bomb_worst, memory)
        executed = marker.exists()
    print(f"seed {options.seed}: {options.count:,} variants of a batch of {options.images} images in {seconds:.1f} s")
    for ended, count in ends.most_common():
        print(f"{ended:<40}{count:>8,}")
    print(f"memory: honest {honest_memory:,} bytes, worst {worst:,}: {worst / honest_memory:.2f} times")
    print(f"memory: honest file of {bomb_size:,} bytes, worst bomb {bomb_worst:,}: {bomb_worst / bomb_size:.2f} times")
    print(f"commands executed: {'yes' if executed else 'none'}")
    small = worst <= 2 * honest_memory and bomb_worst <= 2 * bomb_size
    return (
        0 if honest_end == "dictionary" and set(ends) <= {"dictionary", "DataError"} and small and not executed else 1
    )


if __name__ == "__main__":
    sys.exit(main())
