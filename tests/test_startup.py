"""What makes commands start and end sooner changes nothing else."""

import ctypes
import gc
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from cifarctl.startup import import_beside, large_imports, load_gpu_libraries, wake_gpu

from support import Cifarctl


def finish_threads(before: set[threading.Thread]) -> None:
    for thread in set(threading.enumerate()) - before:
        thread.join()


def test_what_is_imported_at_the_start_is_not_searched_for_garbage() -> None:
    code = """
import gc
from cifarctl.startup import large_imports
with large_imports():
    assert not gc.isenabled()
    import torch
frozen = gc.get_freeze_count()
with large_imports():  # a second time in the same process, it would keep garbage for good
    assert gc.isenabled()
print(frozen > 50_000, gc.isenabled(), gc.get_freeze_count() == frozen)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True"]


def test_an_import_that_fails_leaves_the_collector_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    try:
        with pytest.raises(ImportError), large_imports():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()


class TestGpuDriver:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
        """What a driver that has eight GPUs is asked."""
        calls: list[tuple[str, int]] = []

        def get(gpu: object, number: int) -> int:
            calls.append(("get", number))
            gpu._obj.value = 10 + number  # type: ignore[attr-defined]
            return 0

        def retain(context: object, gpu: ctypes.c_int) -> int:  # noqa: ARG001 (what it is given)
            calls.append(("retain", gpu.value))
            return 0

        driver = SimpleNamespace(cuInit=lambda _: 0, cuDeviceGet=get, cuDevicePrimaryCtxRetain=retain)
        monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
        return calls

    def woken(self, device: str) -> None:
        before = set(threading.enumerate())
        wake_gpu(device)  # type: ignore[arg-type]
        finish_threads(before)

    def test_it_makes_the_context_that_torch_will_use(self, calls: list[tuple[str, int]]) -> None:
        self.woken("auto")
        assert calls == [("get", 0), ("retain", 10)]

    def test_under_torchrun_it_is_that_of_this_process(
        self, calls: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOCAL_RANK", "2")
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        self.woken("cuda")
        assert calls == [("get", 2), ("retain", 12)]

    @pytest.mark.parametrize("device", ["cpu", "mps"])
    def test_it_sleeps_where_another_device_computes(self, calls: list[tuple[str, int]], device: str) -> None:
        self.woken(device)
        assert calls == []

    def test_a_driver_that_refuses_and_none_at_all_are_left_to_torch(
        self, calls: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(cuInit=lambda _: 100))  # CUDA_ERROR_NO_DEVICE
        self.woken("auto")
        monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
        self.woken("auto")

        def missing(name: str) -> None:
            raise OSError(f"{name}: cannot open shared object file")

        monkeypatch.setattr(ctypes, "CDLL", missing)
        self.woken("auto")
        assert calls == []


@pytest.mark.filterwarnings("error")  # an exception that a thread does not catch is one
def test_modules_are_imported_beside_and_what_fails_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_module.py").write_text("raise RuntimeError")
    (tmp_path / "whole_module.py").write_text("import sys; interval = sys.getswitchinterval()")
    monkeypatch.syspath_prepend(tmp_path)
    usual, before = sys.getswitchinterval(), set(threading.enumerate())
    import_beside(["no_such_module", "broken_module", "whole_module"])
    finish_threads(before)
    assert sys.modules.pop("whole_module").interval < usual  # the training loop gets its turn soon
    assert sys.getswitchinterval() == usual
    assert capfd.readouterr() == ("", "")


@pytest.mark.needs("GPU")
def test_a_run_on_a_gpu_saves_no_epoch_by_itself_and_leaves_all_files(
    installed: Cifarctl, tmp_path: Path, classifier_run: Path
) -> None:
    import torch

    load_gpu_libraries(torch.device("cuda")).join()
    few = ("--data", "synthetic", "--limit", 1000, "--val-size", 200, "--batch-size", 250, "--epochs", 2)
    done = installed("train-clf", *few, "--device", "cuda", "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    assert "on cuda" in done.err
    names = [
        {path.name for path in run.iterdir() if ".tfevents." not in path.name}
        for run in (tmp_path / "run", classifier_run)
    ]
    assert names[0] == names[1]
    assert done.json["test"]["accuracy"] > 0.3
