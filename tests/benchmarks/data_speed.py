"""How long an archive takes to become the data file, and how long that takes to open.

    python tests/benchmarks/data_speed.py [ARCHIVE] [--runs 5]

ARCHIVE is by default one of the official one's layout and size, made here from random pixels. Verifying, reading and
writing are timed in this process, opening in fresh ones, without their imports. Prints medians, in seconds.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from cifarctl.data.archive import CIFAR10, sha256_of
from cifarctl.data.download import Installed, install

sys.path.insert(0, str(Path(__file__).parent.parent))
from py2_pickle import write_archive

OPEN = """
import sys, time
from pathlib import Path
from cifarctl.data.data_file import read_data_file

started = time.perf_counter()
train, test = read_data_file(Path(sys.argv[1]))
print(time.perf_counter() - started)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, nargs="?")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.archive or write_archive(Path(folder, "archive.tar.gz"), per_batch=10_000).path
        sha256, data_file = sha256_of(path), Path(folder, "cifar10.safetensors")
        ready = []
        for _ in range(options.runs):
            *_, event = install(CIFAR10, [str(path)], sha256, data_file, replace=True)
            assert isinstance(event, Installed)
            ready.append(event.seconds)
        opened = [
            float(subprocess.check_output([sys.executable, "-c", OPEN, str(data_file)])) for _ in range(options.runs)
        ]
        size = path.stat().st_size
    print(f"archive of {size:,} bytes, median (and slowest) of {options.runs} runs")
    print(f"archive to data file {statistics.median(ready):7.3f} s  ({max(ready):.3f})")
    print(f"opening the file     {statistics.median(opened):7.4f} s  ({max(opened):.4f})")


if __name__ == "__main__":
    main()
