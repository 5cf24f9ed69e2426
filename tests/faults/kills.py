"""Kill real training runs at random moments, and damage checkpoints at random places; print a table of what came of it.

    OMP_NUM_THREADS=1 python tests/faults/kills.py [--kills 40] [--flips 100] [--cuts 100] [--others 10] [--seed 0]

Every run trains convolutions on synthetic images, two runs at a time. Each must end with the weights of a run
without a break, or be refused with a sentence. Needs fork, so not Windows; about ten minutes on two idle cores.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# Imported before the fork, so that a process's start costs no seconds.
import matplotlib.figure  # noqa: F401
import torch  # noqa: F401
from safetensors import safe_open

from cifarctl import plots  # noqa: F401
from cifarctl.cli import training as training_command  # noqa: F401
from cifarctl.entry import main as cifarctl_main
from cifarctl.training import session  # noqa: F401

CONVOLUTIONS = ("train-clf", "--data", "synthetic", "--set", "model.widths=24,24,24", "--no-tensorboard")
RUN = (*CONVOLUTIONS, "--limit", "2048", "--val-size", "100", "--batch-size", "64", "--epochs", "5")
# Of what is resumed after damage, many times: few steps.
SHORT = (*CONVOLUTIONS, "--limit", "64", "--val-size", "50", "--batch-size", "32", "--epochs", "4")
RESUME = ("train-clf", "--resume")


@dataclass(frozen=True)
class Ended:
    """How a process ended. code: its exit code, or minus the signal that killed it. said: its stdout and stderr."""

    code: int
    said: str


class Training:
    """`cifarctl` in a process of its own, forked from this one, which has imported everything and computed nothing."""

    def __init__(self, arguments: tuple[str, ...], log: Path) -> None:
        self._log = log
        self.pid = os.fork()
        if self.pid:
            return
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.argv = ["cifarctl", *arguments]
            cifarctl_main()
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 0)
        finally:
            os._exit(99)

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so its number is still its own

    def wait(self) -> Ended:
        """Wait for its end."""
        _, status = os.waitpid(self.pid, 0)
        return Ended(os.waitstatus_to_exitcode(status), self._log.read_text())


def digest(run: Path) -> str:
    """SHA-256 of all tensors of a finished run: of the best epoch and of the last."""
    sha256 = hashlib.sha256()
    for name in ("model", "last"):
        with safe_open(run / f"{name}.safetensors", framework="np") as file:
            for key in sorted(file.keys()):
                sha256.update(key.encode() + file.get_tensor(key).tobytes())
    return sha256.hexdigest()


def judged(run: Path, ended: Ended, expected: str) -> str:
    """What came of the last process of a run, in words; in capitals if it must not be."""
    if ended.code == 0:
        return "the same bits" if digest(run) == expected else "OTHER BITS"
    errors = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    if ended.code != 1 or len(errors) != 1 or "Traceback" in ended.said or "internal error" in ended.said:
        return f"FAILED with {ended.code}: {ended.said[-300:]!r}"
    return "refused: " + re.sub(r"\d+", "N", re.sub(r"\S*/|^error: ", "", errors[0]))[:90]


@dataclass(frozen=True)
class Trial:
    """folder: where runs are broken. expected: the digest of the run without a break. seconds: how long that took."""

    folder: Path
    seed: int
    expected: str
    seconds: float

    def train(self, name: str, *arguments: str) -> Training:
        """A process that trains in the folder `name`."""
        return Training((*arguments, "--out", str(self.folder / name)), self.folder / f"{name}-{arguments[-1]}.txt")

    def kill(self, number: int) -> list[str]:
        """A run that is killed once; of every third, a second process starts before."""
        moments, name = random.Random(f"{self.seed} {number}"), f"killed-{number}"
        run = self.folder / name
        first, second, outcomes = self.train(name, *RUN), None, []
        time.sleep(moments.uniform(0, self.seconds))
        if number % 3 == 0:
            second = Training((*RESUME, "--out", str(run)), self.folder / f"{name}-second.txt")
            time.sleep(moments.uniform(0, 2))
        first.kill()
        was_alive = first.wait().code == -signal.SIGKILL
        if second:
            ended = second.wait()
            outcomes.append(f"second process: {judged(run, ended, self.expected)}")
        if (run / "summary.json").exists():
            last = Ended(0, "")
        else:
            last = self.train(name, *(RESUME if (run / "config.json").exists() else RUN)).wait()
        outcomes.append(f"{'killed' if was_alive else 'had ended'}, then: {judged(run, last, self.expected)}")
        shutil.rmtree(run)
        return outcomes

    def damage(self, how: str, number: int) -> list[str]:
        """A short run whose newest checkpoint has one flipped bit, is cut, or is of another run."""
        places, name = random.Random(f"{self.seed} {how} {number}"), f"{how}-{number}"
        run = Path(shutil.copytree(self.folder / "stopped", self.folder / name))
        newest = run / "checkpoint.safetensors"
        content = bytearray(newest.read_bytes())
        if how == "flip":
            # A third of them in the header, where the position, the format and the digest are.
            end = 8 + int.from_bytes(content[:8], "little") if number % 3 == 0 else len(content)
            content[places.randrange(end)] ^= 1 << places.randrange(8)
        elif how == "cut":
            del content[places.randrange(len(content)) :]
        else:
            content = bytearray((self.folder / f"other-run-{number}" / newest.name).read_bytes())
        newest.write_bytes(content)
        outcome = judged(run, self.train(name, *RESUME).wait(), self.expected)
        shutil.rmtree(run)
        return [f"{how}: {outcome}"]


def stop(folder: Path, name: str, *arguments: str) -> None:
    """Train until the third epoch has been saved, and end with SIGTERM."""
    log = folder / f"{name}-stopped.txt"
    process = Training((*arguments, "--out", str(folder / name)), log)
    while not log.exists() or "epoch 3/" not in (said := log.read_text()):
        assert not log.exists() or "error: " not in said, said
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    ended = process.wait()
    assert ended.code == 143, ended.said


def whole(folder: Path, name: str, *arguments: str) -> tuple[str, float]:
    """The digest of a run without a break, and its seconds."""
    started = time.monotonic()
    ended = Training((*arguments, "--out", str(folder / name)), folder / f"{name}.txt").wait()
    assert ended.code == 0, ended.said
    return digest(folder / name), time.monotonic() - started


# Runs that differ from SHORT in one thing.
OTHERS = (
    *(("--seed", str(seed)) for seed in range(1, 5)),
    *(("--lr", rate) for rate in ("0.1", "0.11")),
    *(("--epochs", epochs) for epochs in ("5", "6")),
    *(("--set", field) for field in ("crop=3", "flip=none")),
)


def main() -> int:
    """0 if nothing happened that must not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (
        ("kills", 40),
        ("flips", 100),
        ("cuts", 100),
        ("others", len(OTHERS)),
        ("seed", 0),
        ("jobs", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=count)
    given = parser.parse_args()
    failed: set[str] = set()

    def tried(trial: Callable[[int], list[str]], count: int, pool: "multiprocessing.pool.Pool") -> None:
        started = time.monotonic()
        table: Counter[str] = Counter()
        for outcomes in pool.imap_unordered(trial, range(count)):
            table.update(outcomes)
            failed.update(outcome for outcome in outcomes if "OTHER BITS" in outcome or "FAILED" in outcome)
        print(f"{count} tries took {time.monotonic() - started:.0f} s", flush=True)
        for outcome, times in sorted(table.items()):
            print(f"{times:5}  {outcome}", flush=True)

    with tempfile.TemporaryDirectory() as temporary, multiprocessing.get_context("fork").Pool(given.jobs) as pool:
        folder = Path(temporary)
        expected, seconds = whole(folder, "whole", *RUN)
        print(f"a run without a break: {seconds:.1f} s, SHA-256 {expected[:16]}", flush=True)
        tried(Trial(folder, given.seed, expected, seconds).kill, given.kills, pool)
        expected, seconds = whole(folder, "short", *SHORT)
        print(f"a short one: {seconds:.1f} s, SHA-256 {expected[:16]}", flush=True)
        stop(folder, "stopped", *SHORT)
        for number, other in enumerate(OTHERS[: given.others]):
            stop(folder, f"other-run-{number}", *SHORT, *other)
        trial = Trial(folder, given.seed, expected, seconds)
        for how, count in (("flip", given.flips), ("cut", given.cuts), ("other", given.others)):
            tried(partial(trial.damage, how), count, pool)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
