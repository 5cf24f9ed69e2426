"""`torchrun … -m cifarctl train-clf`: each process takes its share, the first one speaks, and a lost one costs a
restart.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cifarctl.distributed import ALONE, Ranks, join_ranks
from cifarctl.errors import UsageError
from cifarctl.training.signals import Request

from support import Cifarctl

pytestmark = pytest.mark.needs("POSIX")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
QUICK = ("--data", "synthetic", "--limit", "1000", "--val-size", "100", "--batch-size", "100", "--no-tensorboard")


def run_torchrun(*arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """The command in two processes."""
    return subprocess.run(
        [*TORCHRUN, "-m", "cifarctl", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
        check=False,
    )


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
        "from cifarctl.training.signals import Request\n"
        "with join_ranks(torch.device('cpu')) as ranks:\n"
        "    tensors = [torch.full((2, 2), float(ranks.rank)), torch.arange(3.0) * ranks.rank]\n"
        "    heard = ranks.average(tensors, 15 if ranks.rank == 1 else 0)\n"
        "    assert heard == 15 and ranks.average(tensors) == 0\n"
        "    asked = (Request.SAVE, Request.STOP_SIGTERM)[ranks.rank]\n"
        "    assert Request(int(ranks.average(tensors, asked))) is Request.STOP_SIGTERM\n"
        "    assert torch.equal(tensors[0], torch.full((2, 2), 0.5))\n"
        "    assert torch.equal(tensors[1], torch.tensor([0, 0.5, 1]))\n"
        "    assert ranks.from_main(f'from {ranks.rank}') == 'from 0'\n"
        "    assert ranks.is_main == (ranks.rank == 0)\n"
    )
    done = subprocess.run(
        [*TORCHRUN, str(script)], capture_output=True, text=True, env=environment(), timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_stop_outranks_a_checkpoint_and_keeps_its_signal() -> None:
    stops = [Request.for_signal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert [stop.signal for stop in stops] == [signal.SIGINT, signal.SIGTERM]
    assert [request.stops for request in (Request.NONE, Request.SAVE, *stops)] == [False, False, True, True]
    assert sorted([*stops, Request.SAVE, Request.NONE]) == [Request.NONE, Request.SAVE, *stops]


@pytest.mark.thorough
def test_two_processes_train_one_model_and_speak_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("train-clf", *QUICK, "--batch-size", "200", "--epochs", "2", "--out", str(run), "--json")
    done = run_torchrun(*arguments)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["test"]["accuracy"] > 0.3
    assert done.stderr.count("epoch 1/2") == 1
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in history] == [5, 10], "the batch of 200 is that of both together"
    assert not (run / "checkpoint.safetensors").exists()


@pytest.mark.thorough
@pytest.mark.needs("/proc")
def test_a_killed_process_leads_to_a_restart_from_the_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("train-clf", *QUICK, "--arch", "mlp", "--epochs", "12", "--out", str(run))
    command = [*TORCHRUN, "--max-restarts", "1", "-m", "cifarctl", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as job:
        assert job.stderr is not None
        lines = []
        for line in job.stderr:
            lines.append(line)
            if line.startswith("epoch  2/12"):
                os.kill(_worker(job.pid), signal.SIGKILL)
                break
        lines += job.stderr.readlines()
    assert job.returncode == 0, "".join(lines)
    assert any(line.startswith("Resuming") for line in lines)
    epochs = [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 13))
    assert all(tensor.isfinite().all() for tensor in load_file(run / "model.safetensors").values())


def _worker(parent: int, number: int = 1) -> int:
    """The process of this number that torchrun has started."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent
                if ours and b"\0RANK=%d\0" % number in b"\0" + (folder / "environ").read_bytes():
                    return int(folder.name)
            except (OSError, ValueError):  # it has ended
                continue
    raise AssertionError(f"there is no worker {number}")


# Two hosts, each with a network of its own and a cable between them, as a user without rights may make them on Linux.
# $1 and $2: the commands that they run. Where the first one fails, the other does not wait for it.
TWO_HOSTS = """
set -e
ip link set lo up
ip link add name left type veth peer name right
unshare --net sh -c 'until ip link show right; do sleep 0.1; done >/dev/null 2>&1
    ip link set lo up; ip addr add 10.77.0.2/24 dev right; ip link set right up; eval "exec env $0"' "$2" &
other=$!
trap 'kill $other 2>/dev/null || true' EXIT
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
ip link set right netns $other
ip addr add 10.77.0.1/24 dev left
ip link set left up
eval "env $1"
wait $other
"""


@pytest.mark.thorough
@pytest.mark.needs("network namespaces")
def test_two_machines_end_with_one_model(tmp_path: Path) -> None:
    """Each has its own torchrun, and they meet at one address. They share the run's folder, and nothing else."""
    run = tmp_path / "run"
    agent = (sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1")
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29400", "--rdzv-id", "job")
    training = ("-m", "cifarctl", "train-clf", *QUICK, "--arch", "mlp", "--epochs", "2", "--out", str(run), "--json")
    lines = [
        # Their names lead to 127.0.0.1, so gloo is told which way to go, and torchrun which of them holds the address.
        f"GLOO_SOCKET_IFNAME={cable} "
        + shlex.join([*agent, *meeting, "--rdzv-conf", f"is_host={host}", "--local-addr", address, *training])
        for cable, host, address in (("left", 1, "10.77.0.1"), ("right", 0, "10.77.0.2"))
    ]
    hosts = ["unshare", "--user", "--map-root-user", "--net", "bash", "-c", TWO_HOSTS, "two-hosts", *lines]
    done = subprocess.run(hosts, capture_output=True, text=True, env=environment(), timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == str(run / "model.safetensors"), "one of them has spoken"
    assert json.loads((run / "config.json").read_text())["processes"] == 2


@pytest.mark.thorough
def test_a_restart_must_find_the_run() -> None:
    command = [*TORCHRUN, "--max-restarts", "1", "-m", "cifarctl", "train-clf", *QUICK]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    assert done.returncode != 0
    assert "error: torchrun --max-restarts: a restart must find the run" in done.stderr


@pytest.mark.thorough
def test_what_is_not_shared_out_is_done_once(photos: Path, autoencoder_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    done = run_torchrun("reconstruct", str(photos), "-m", str(autoencoder_run), "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("grid.png: 30 images") == 1
    assert out.exists()


@pytest.mark.thorough
def test_a_batch_that_cannot_be_shared_equally_is_refused(tmp_path: Path) -> None:
    arguments = ("train-clf", *QUICK, "--batch-size", "101", "--out", str(tmp_path / "run"))
    done = run_torchrun(*arguments)
    assert done.returncode != 0
    # torchrun ends the others when one has failed, so either may be the one that says it.
    assert re.search("error: (process 1: )?--batch-size 101: 2 processes cannot share it equally", done.stderr)
    assert "Traceback (most recent call last):\n  File" not in done.stderr.split("torch/distributed")[0]


@pytest.mark.thorough
def test_predict_writes_one_result_in_the_order_of_its_input(
    photos: Path, classifier_run: Path, tmp_path: Path, installed: Cifarctl
) -> None:
    (tmp_path / "broken.png").write_text("no image")
    inputs = (str(photos), str(tmp_path / "broken.png"), str(photos))
    options = ("-m", str(classifier_run), "--batch-size", "4")  # several rounds of dealing out
    alone = installed("predict", *inputs, *options)
    together = run_torchrun("predict", *inputs, *options)
    assert together.stdout == alone.out
    assert "1 of 61 files could not be read" in together.stderr
    assert together.returncode != 0
    stdin = "".join(f"{path}\n" for path in sorted(photos.iterdir()))
    assert run_torchrun("predict", "-", *options, stdin=stdin).stdout.splitlines() == alone.out.splitlines()[:30]


@pytest.mark.thorough
def test_evaluate_measures_the_same(classifier_run: Path, installed: Cifarctl) -> None:
    arguments = ("evaluate", "-m", str(classifier_run), "--json")
    alone, together = installed(*arguments).json, json.loads(run_torchrun(*arguments).stdout)
    assert together["confusion_matrix"] == alone["confusion_matrix"]
    assert together["metrics"].pop("accuracy_ci95") == alone["metrics"].pop("accuracy_ci95")
    assert together["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)


@pytest.mark.thorough
@pytest.mark.needs("/proc")
@pytest.mark.parametrize("stopped", [0])  # of three processes, another one is stopped below
def test_a_stopped_process_is_named_in_time_and_its_run_goes_on(tmp_path: Path, stopped: int) -> None:
    run = tmp_path / "run"
    arguments = ("train-clf", *QUICK, "--arch", "mlp", "--epochs", "6", "--out", str(run))
    command = [*TORCHRUN, "-m", "cifarctl", *arguments]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**environment(), "CIFARCTL_TIMEOUT": "4"}
    ) as job:
        assert job.stderr is not None
        lines, worker = [], 0
        for line in job.stderr:
            lines.append(line)
            if line.startswith("epoch 2/6"):
                worker = _worker(job.pid, stopped)
                os.kill(worker, signal.SIGSTOP)
            if line.startswith("hint: "):
                os.kill(worker, signal.SIGKILL)  # torchrun waits half a minute for it before it does so
                break
        job.stderr.read()
    assert job.returncode == 1
    speaker = "" if stopped else "process 1: "
    assert [line for line in lines if line.startswith(("error: ", "hint: "))] == [
        f"error: {speaker}process {stopped} did not answer for 4 s\n",
        "hint: if it was only slow, CIFARCTL_TIMEOUT=SECONDS waits longer; go on with: "
        f"torchrun --standalone --nproc-per-node 2 -m cifarctl train-clf --out {run} --resume\n",
    ]
    assert not any("Traceback" in line for line in lines)
    resumed = run_torchrun("train-clf", "--out", str(run), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming mlp" in resumed.stderr
    epochs = [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 7))


@pytest.mark.thorough
@pytest.mark.needs("/proc")
def test_of_three_processes_all_that_run_name_the_stopped_one(tmp_path: Path) -> None:
    script = tmp_path / "wait.py"
    script.write_text(
        "import os, signal, torch\n"
        "from cifarctl.distributed import join_ranks\n"
        "from cifarctl.errors import ProcessLostError\n"
        "with join_ranks(torch.device('cpu')) as ranks:\n"
        "    pids = ranks.gather(os.getpid())\n"
        "    if ranks.rank == 2:\n"
        "        os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    try:\n"
        "        ranks.average([torch.zeros(3)])\n"
        "    except ProcessLostError as error:\n"
        "        os.write(1, f'{ranks.rank}: {error}\\n'.encode())  # whole lines, also without Python's buffers\n"
        "    if ranks.is_main:\n"
        "        os.kill(pids[2], signal.SIGKILL)\n"
    )
    command = [*TORCHRUN[:-1], "3", str(script)]
    environ = {**environment(), "CIFARCTL_TIMEOUT": "4"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120, check=False)
    assert sorted(done.stdout.splitlines()) == [f"{rank}: process 2 did not answer for 4 s" for rank in (0, 1)]


@pytest.mark.parametrize("seconds", ["banana", "0", "nan", "1e9"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "2"), ("CIFARCTL_TIMEOUT", seconds)):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"CIFARCTL_TIMEOUT is '{seconds}', not a number of seconds from 1 to"):
        join_ranks(torch.device("cpu")).__enter__()
