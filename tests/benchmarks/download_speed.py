"""How much four bad mirrors cost `cifarctl download`, beside a good one.

    python tests/benchmarks/download_speed.py [ARCHIVE] [--rate 40] [--runs 3]

Serves ARCHIVE (by default one of the same layout and 37 MB, made here) on loopback from a good mirror of so many MB/s;
from one of 60 kB/s, one that stalls after 1 MB, one that answers 503, and one that answers every request with a page.
Prints the median time of the good one alone, of all five, and the ratio; whole commands, and without their start-up.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from loopback import Mirror, serving
from py2_pickle import write_archive


def run(urls: list[str], sha256: str, good: str) -> tuple[float, float]:
    """Seconds of one download: the whole command, and as it reports them."""
    with tempfile.TemporaryDirectory() as folder:
        sources = [part for url in urls for part in ("--from", url)]
        command = [str(Path(sys.executable).with_name("cifarctl")), "download", *sources, "--sha256", sha256]
        started = time.perf_counter()
        done = subprocess.run([*command, "--data-dir", folder, "--json", "--quiet"], stdout=subprocess.PIPE, check=True)
        seconds = time.perf_counter() - started
        result = json.loads(done.stdout)
        assert result["sha256"] == sha256
        assert result["source"] == good
        return seconds, result["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, nargs="?")
    parser.add_argument("--rate", type=float, default=40.0, help="MB/s of the good mirror")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.archive or write_archive(Path(folder, "archive.tar.gz"), per_batch=2000).path
        content = path.read_bytes()
    mirrors = {
        "/throttled": Mirror(content, rate=60e3),
        "/stalls": Mirror(content, stalls_at=1_000_000),
        "/busy": Mirror(status=503),
        "/page": Mirror(b"<!doctype html><title>Moved</title>", content_type="text/html"),
        "/good": Mirror(content, rate=options.rate * 1e6),
    }
    sha256 = hashlib.sha256(content).hexdigest()
    with serving(mirrors) as url:
        good, everyone = f"{url}/good", [url + name for name in mirrors]
        # In turn, so that a drift of the machine's speed meets both alike.
        times = [(run([good], sha256, good), run(everyone, sha256, good)) for _ in range(options.runs)]
    print(f"{len(content):,} bytes, good mirror of {options.rate:g} MB/s, median of {options.runs} runs")
    for i, name in enumerate(("whole command", "without start-up")):
        alone, five = (statistics.median(each[j][i] for each in times) for j in range(2))
        print(f"{name:<18}good alone {alone:6.2f} s   five mirrors {five:6.2f} s   ratio {five / alone:5.2f}")


if __name__ == "__main__":
    main()
