"""`torchrun … -m cifarctl train-clf`: each process takes its share, the first one speaks, and a lost one costs a
restart.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cifarctl.distributed import ALONE, Ranks

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
QUICK = ("--data", "synthetic", "--limit", "1000", "--batch-size", "100", "--no-tensorboard")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_do_not_overlap_and_leave_nothing_out(size: int) -> None:
    batch = torch.arange(12)
    shares = [Ranks(rank, size).share(batch) for rank in range(size)]
    assert {len(share) for share in shares} == {12 // size}
    assert torch.equal(torch.cat(shares).sort().values, batch)


def test_one_process_has_nothing_to_agree_on() -> None:
    tensor = torch.rand(3)
    before = tensor.clone()
    assert ALONE.average([tensor], signal.SIGTERM) == signal.SIGTERM
    assert torch.equal(tensor, before)
    assert ALONE.from_main("x") == "x"


def test_processes_average_and_hear_of_each_others_signals(tmp_path: Path) -> None:
    script = tmp_path / "average.py"
    script.write_text(
        "import torch\n"
        "from cifarctl.distributed import join_ranks\n"
        "with join_ranks(torch.device('cpu')) as ranks:\n"
        "    tensors = [torch.full((2, 2), float(ranks.rank)), torch.arange(3.0) * ranks.rank]\n"
        "    heard = ranks.average(tensors, 15 if ranks.rank == 1 else 0)\n"
        "    assert heard == 15 and ranks.average(tensors) == 0\n"
        "    assert torch.equal(tensors[0], torch.full((2, 2), 0.5))\n"
        "    assert torch.equal(tensors[1], torch.tensor([0, 0.5, 1]))\n"
        "    assert ranks.from_main(f'from {ranks.rank}') == 'from 0'\n"
        "    assert ranks.is_main == (ranks.rank == 0)\n"
    )
    done = subprocess.run(
        [*TORCHRUN, str(script)], capture_output=True, text=True, env=environment(), timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_two_processes_train_one_model_and_speak_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("train-clf", *QUICK, "--epochs", "3", "--out", str(run), "--json")
    done = subprocess.run(
        [*TORCHRUN, "-m", "cifarctl", *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["test"]["accuracy"] > 0.3
    assert done.stderr.count("epoch 1/3") == 1
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in history] == [10, 20, 30], "the batch of 100 is that of both together"
    assert not (run / "checkpoint.safetensors").exists()


def test_a_killed_process_leads_to_a_restart_from_the_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("train-clf", *QUICK, "--epochs", "6", "--out", str(run))
    command = [*TORCHRUN, "--max-restarts", "1", "-m", "cifarctl", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as job:
        assert job.stderr is not None
        lines = []
        for line in job.stderr:
            lines.append(line)
            if line.startswith("epoch 2/6"):
                os.kill(_worker(job.pid), signal.SIGKILL)
                break
        lines += job.stderr.readlines()
    assert job.returncode == 0, "".join(lines)
    assert any(line.startswith("Resuming") for line in lines)
    epochs = [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 4, 5, 6]
    assert all(tensor.isfinite().all() for tensor in load_file(run / "model.safetensors").values())


def _worker(parent: int) -> int:
    """A process that torchrun has started, not the first."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent
                if ours and b"\0RANK=1\0" in b"\0" + (folder / "environ").read_bytes():
                    return int(folder.name)
            except (OSError, ValueError):  # it has ended
                continue
    raise AssertionError("there is no second worker")
