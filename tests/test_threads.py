"""Threads on the CPU: how many compute, and that their number changes no figure of an evaluation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cifarctl import inference, models
from cifarctl.errors import WeightsError
from cifarctl.models.base import Classifier


def drawn_model() -> Classifier:
    model = models.build("mlp", classes=10)
    assert isinstance(model, Classifier)
    return model


@pytest.fixture
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
class TestBatchesInThreads:
    images = torch.randint(256, (300, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def test_same_logits_as_with_one_thread(self) -> None:
        model = drawn_model()
        in_threads = inference.predict_logits(model, self.images, batch_size=64)
        torch.set_num_threads(1)
        assert torch.equal(in_threads, inference.predict_logits(model, self.images, batch_size=64))

    def test_as_many_threads_afterwards(self) -> None:
        inference.predict_logits(drawn_model(), self.images, batch_size=64)
        assert torch.get_num_threads() == 2

    def test_an_error_of_one_batch_is_raised(self) -> None:
        model = drawn_model()
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)
        with pytest.raises(WeightsError, match="not finite"):
            inference.predict_logits(model, self.images, batch_size=64)
        assert torch.get_num_threads() == 2
        assert not torch.is_inference_mode_enabled()


class TestThreadsOption:
    @staticmethod
    def config_of(out: Path, *options: str) -> dict[str, object]:
        command = [sys.executable, "-m", "cifarctl", "train-clf", "--data", "synthetic", "--arch", "mlp"]
        command += ["--limit", "64", "--epochs", "1", "--no-tensorboard", "--quiet", "--out", str(out), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        subprocess.run(command, check=True, env=environment, capture_output=True)
        config: dict[str, object] = json.loads((out / "config.json").read_text())
        return config

    def test_that_many_compute(self, tmp_path: Path) -> None:
        assert self.config_of(tmp_path / "one", "--threads", "1")["threads"] == 1
        assert self.config_of(tmp_path / "two")["threads"] == 2

    def test_none_is_a_usage_error(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "cifarctl", "predict", "example", "--threads", "0"], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert "--threads" in done.stderr
