"""A Mac's GPU, as `fake_mps` stands in for it: nothing that it refuses is asked of it, and `auto` leaves it alone.

What these tests cannot show is that a real one answers right.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cifarctl import hardware, models
from cifarctl.data import Dataset, Source
from cifarctl.errors import UsageError
from cifarctl.evaluation import evaluate_autoencoder, evaluate_classifier
from cifarctl.models import pca
from cifarctl.models.base import Autoencoder, Classifier, Model
from cifarctl.rate_distortion import measure_rate_distortion
from cifarctl.training import recipes
from cifarctl.training.augment import random_affine, scale
from cifarctl.training.calibration import calibrate, fit_calibration
from cifarctl.training.loop import EpochDone, Fitted, fit
from cifarctl.training.objectives import Classification, FrozenLatents, Objective, Reconstruction
from cifarctl.training.recipes import Recipe

import fake_mps
from fake_mps import MpsTensor
from support import Cifarctl

MPS = torch.device("mps")
TINY: dict[str, dict[str, Any]] = {
    "airbench": {"classes": 2, "widths": (24, 24, 24), "depth": (1, 2, 3), "whiten_bias": True, "pool": "max+mean"},
    "mlp": {"classes": 2, "encoder": {"model": "conv2", "config": {"latent_dim": 64}}},
    "resconv": {"latent_dim": 16, "width": 8, "blocks": 1},
    "conv2": {"latent_dim": 64},
}


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is on a Mac with a GPU."""
    fake_mps.install(monkeypatch)
    real = torch.linalg.eigh

    def quick(matrix: Tensor) -> tuple[Tensor, Tensor]:
        """As it is, but for 3072×3072 on the CPU, which takes seconds: any orthonormal columns do here."""
        if len(matrix) < 3072 or isinstance(matrix, MpsTensor):
            return real(matrix)
        assert matrix.shape == (3072, 3072)
        return torch.zeros(3072), torch.eye(3072)

    monkeypatch.setattr(torch.linalg, "eigh", quick)


@pytest.fixture(scope="module")
def data(image_folder: Path) -> tuple[Dataset, Dataset]:
    """64 images to train on and 16 to validate on."""
    source = Source(str(image_folder), val_size=16)
    return source.load("train"), source.load("val")


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).to(MPS).requires_grad_()


def normed(memory_format: torch.memory_format) -> Tensor:
    norm = torch.nn.BatchNorm2d(3).to(MPS)
    return norm(images(4, 3, 8, 8).contiguous(memory_format=memory_format)).square().sum()


@pytest.mark.usefixtures("mac")
class TestTheStandIn:
    """The faults that it finds. Each is one that cifarctl had, or would have in training through an autoencoder."""

    @pytest.mark.parametrize(
        ("attempt", "error", "reason"),
        [
            (lambda: torch.linalg.eigh(torch.eye(3, device=MPS)), NotImplementedError, "_linalg_eigh"),
            (lambda: torch.linalg.svd(torch.eye(3, device=MPS)), NotImplementedError, "_linalg_svd"),
            (lambda: torch.ones(3).to("mps").double(), TypeError, "float64"),
            (lambda: torch.ones(3, dtype=torch.float64).to("mps"), TypeError, "float64"),
            (lambda: torch.zeros(3, dtype=torch.float64, device="mps"), TypeError, "float64"),
            (lambda: torch.ones(3, device=MPS) + torch.ones(3), RuntimeError, "same device"),
            (lambda: torch.randperm(3, device=MPS, generator=torch.Generator()), RuntimeError, "generator"),
            (lambda: torch.ones(3, device=MPS).numpy(), TypeError, "numpy"),
            (lambda: normed(torch.channels_last).backward(), RuntimeError, "batch norm"),
            (lambda: torch.ones(16, 40_000, device=MPS) @ torch.ones(40_000, 16, device=MPS), RuntimeError, "32,767"),
            (lambda: random_affine(images(4, 3, 8, 8), 1.2, 9, 0.1, 1).sum().backward(), NotImplementedError, "grid_"),
            (lambda: scale(images(4, 3, 8, 8), 4).sum().backward(), NotImplementedError, "bilinear2d_aa_backward"),
        ],
    )
    def test_it_refuses(self, attempt: Callable[[], object], error: type[Exception], reason: str) -> None:
        with pytest.raises(error, match=reason):
            attempt()

    def test_else_it_computes_what_the_cpu_does(self) -> None:
        normed(torch.contiguous_format).backward()
        on_mps, on_cpu = images(4, 3, 8, 8), images(4, 3, 8, 8).detach().cpu().requires_grad_()
        weight = torch.full((2, 3, 3, 3), 0.1)
        F.silu(F.conv2d(on_mps, weight.to(MPS))).sum().backward()
        F.silu(F.conv2d(on_cpu, weight)).sum().backward()
        assert on_mps.grad is not None
        assert on_mps.grad.device == torch.device("mps", 0)
        assert on_cpu.grad is not None
        assert torch.equal(on_mps.grad.cpu(), on_cpu.grad)

    def test_it_reads_pytorchs_list(self) -> None:
        text = """
- func: a(Tensor self) -> Tensor
  dispatch:
    # a remark
    CPU: a_cpu
    CUDA, MPS: a_gpu

- func: b(Tensor self) -> Tensor
  structured_delegate: b.out

- func: b.out(Tensor self, *, Tensor(a!) out) -> Tensor(a!)
  structured: True
  dispatch:
    CPU, CUDA: b_out

- func: c(Tensor self) -> Tensor

- func: d(Tensor self) -> Tensor
  dispatch:
    CPU: d_cpu
    CompositeExplicitAutograd: d
"""
        assert fake_mps.without_kernel(text) == {"b", "b.out"}
        assert "linalg_eig" in fake_mps.lacking()
        assert not {"mm", "convolution", "silu.out", "native_batch_norm"} & fake_mps.lacking()


def built(name: str, train: Dataset, device: torch.device) -> Model:
    torch.manual_seed(0)
    model = models.build(name, **TINY[name]).to(device).eval()
    model.initialize(train.images)
    return model


def objective(model: Model, recipe: Recipe) -> Objective:
    if isinstance(model, Autoencoder):
        return Reconstruction(model, recipe, 0)
    assert isinstance(model, Classifier)
    if model.encoder is None:
        return Classification(model, recipe, 0)
    model.encoder.requires_grad_(False)
    return FrozenLatents(model, recipe, 0, "fp32")


@pytest.mark.usefixtures("mac")
class TestTraining:
    @pytest.mark.parametrize(
        ("name", "recipe"),
        [
            ("airbench", recipes.RECIPES["airbench"]["best"]),  # every augmentation
            ("mlp", recipes.RECIPES["mlp"]["fast"]),
            ("resconv", recipes.RECIPES["resconv"]["fast"]),
            ("conv2", replace(recipes.RECIPES["resconv"]["fast"], ema=0.9)),
        ],
    )
    def test_a_run_that_is_resumed_ends_with_the_same_bits(
        self, data: tuple[Dataset, Dataset], tmp_path: Path, name: str, recipe: Recipe
    ) -> None:
        train, val = (part.to(MPS) for part in data)
        recipe = replace(recipe, epochs=3, batch_size=32)
        found = []
        for stops in (False, True):
            for leaves in (True, False) if stops else (False,):
                model = built(name, train, MPS)
                checkpoint = tmp_path / f"{stops}.safetensors"
                what = objective(model, recipe)
                for event in fit(model, what, train, val, recipe, seed=0, precision="fp32", checkpoint=checkpoint):
                    if leaves and isinstance(event, EpochDone) and event.history[-1]["epoch"] == 2:
                        break
            assert isinstance(event, Fitted)
            found.append(event.last)
        assert {tensor.device.type for tensor in found[0].values()} == {"mps"}
        for key, tensor in found[0].items():
            assert torch.equal(tensor.cpu(), found[1][key].cpu()), key

    def test_a_closed_form_is_the_cpus(self, data: tuple[Dataset, Dataset]) -> None:
        for name in ("airbench", "resconv"):
            on_cpu = built(name, data[0], torch.device("cpu")).state_dict()
            on_mps = built(name, data[0].to(MPS), MPS).state_dict()
            for key, tensor in on_cpu.items():
                # The CPU's convolutions are not asked; its memory layout may be another.
                torch.testing.assert_close(on_mps[key].cpu(), tensor, rtol=1e-4, atol=1e-4)

    def test_a_calibration_is_the_cpus(self) -> None:
        logits, labels = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3
        assert fit_calibration(logits.to(MPS), labels.to(MPS)) == fit_calibration(logits, labels)

    def test_a_command_trains_measures_and_says_that_nobody_has_checked_it(
        self, cifarctl: Cifarctl, image_folder: Path, tmp_path: Path
    ) -> None:
        few = ("--data", image_folder, "--val-size", 16, "--epochs", 1, "--batch-size", 32, "--device", "mps")
        clf = cifarctl("train-clf", *few, "--arch", "mlp", "--no-tensorboard", "--out", tmp_path / "clf", "--json")
        assert clf.code == 0, clf.err
        assert "on mps in fp32" in clf.err
        assert "mps: nobody has checked" in clf.err
        assert clf.json["test"]["n"] == 20
        ae = cifarctl("train-ae", *few, "--arch", "conv2", "--out", tmp_path / "ae", "--quiet")
        assert (ae.code, ae.err) == (0, "")
        for run in ("clf", "ae"):
            figures = ("--plots", tmp_path / "figures") if run == "ae" else ()
            report = ("--report", tmp_path / f"{run}.html")
            done = cifarctl("evaluate", "-m", tmp_path / run, "--device", "mps", *report, *figures)
            assert done.code == 0, done.err
            assert "mps: nobody has checked" in done.err


@pytest.mark.usefixtures("mac")
class TestMeasuring:
    def test_a_classifier_is_measured_and_calibrated_as_on_the_cpu(self, data: tuple[Dataset, Dataset]) -> None:
        found = {}
        for device in (torch.device("cpu"), MPS):
            train, val = (part.to(device) for part in data)
            model = built("airbench", train, device)
            assert isinstance(model, Classifier)
            calibrate(model, val, "fp32")
            found[device.type] = evaluate_classifier(model, train, tta=True)
        torch.testing.assert_close(found["mps"].probabilities, found["cpu"].probabilities, rtol=1e-3, atol=1e-4)

    def test_an_autoencoder_is_measured_as_on_the_cpu(self, data: tuple[Dataset, Dataset]) -> None:
        found, rates = {}, {}
        for device in (torch.device("cpu"), MPS):
            train, val = (part.to(device) for part in data)
            model = built("resconv", train, device)
            assert isinstance(model, Autoencoder)
            found[device.type] = evaluate_autoencoder(model, val, train.images).metrics
            rates[device.type] = [
                point.psnr for point in measure_rate_distortion(model, val.images[:4], train.images[:8])
            ]
        assert found["mps"] == pytest.approx(found["cpu"], rel=1e-3)
        assert rates["mps"] == pytest.approx(rates["cpu"], rel=1e-3)

    def test_principal_components_are_fitted_on_the_cpu(self, data: tuple[Dataset, Dataset]) -> None:
        mean, components = pca.fit_pca(data[0].to(MPS).images)
        assert (mean.device.type, components.device.type) == ("mps", "mps")
        assert torch.equal(mean.cpu(), pca.fit_pca(data[0].images)[0])

    @pytest.mark.parametrize("tta", [(), ("--tta",)])
    def test_predictions_are_the_cpus(self, cifarctl: Cifarctl, image_folder: Path, tta: tuple[str, ...]) -> None:
        some = sorted((image_folder / "test" / "red").iterdir())[:3]
        on_mps, on_cpu = (
            cifarctl("predict", *some, *tta, "--precision", "fp32", "--device", device, "--format", "csv", "-q")
            for device in ("mps", "cpu")
        )
        assert (on_mps.code, on_mps.err) == (0, "")
        for one, other in zip(on_mps.out.splitlines()[1:], on_cpu.out.splitlines()[1:], strict=True):
            assert one.split(",")[:2] == other.split(",")[:2]
            assert float(one.split(",")[2]) == pytest.approx(float(other.split(",")[2]), abs=1e-3)

    def test_reconstructions_are_the_cpus(self, cifarctl: Cifarctl, image_folder: Path, tmp_path: Path) -> None:
        some = sorted((image_folder / "test" / "red").iterdir())[:2]
        found = []
        for device in ("mps", "cpu"):
            out = ("--out", tmp_path / f"{device}.png", "--latents", tmp_path / f"{device}.safetensors")
            done = cifarctl("reconstruct", *some, "--device", device, *out, "--json", "-q")
            assert done.code == 0, done.err
            found.append(done.json["psnr_image_mean"])
        assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.usefixtures("mac")
class TestChoosing:
    def test_auto_is_the_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert hardware.select_device("auto") == torch.device("cpu")
        assert hardware.select_device("mps") == MPS
        assert hardware.select_precision("auto", MPS) == "fp32"

    def test_what_it_lacks_ends_in_one_line(
        self, cifarctl: Cifarctl, image_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fake_mps, "LACKING", frozenset({"silu"}))
        done = cifarctl("predict", image_folder / "test", "--device", "mps")
        assert done.code == 1
        assert done.error.startswith("error: the Mac's GPU cannot do this: The operator 'aten::silu' is not currently")
        assert "hint: --device cpu" in done.err
        assert not hardware.is_lacking_on_mps(RuntimeError("CUDA error: MPS client failed to connect"))

    def test_its_memory_runs_out_and_is_released_like_any_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        released = []
        monkeypatch.setattr(torch.mps, "empty_cache", lambda: released.append(True))
        hardware.release_memory()
        assert released
        assert hardware.is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GiB"))


def test_without_a_mac_mps_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="there is none on this machine"):
        hardware.select_device("mps")


def test_the_command_has_what_mps_lacks_run_on_the_cpu_before_torch_is_imported() -> None:
    code = """
import os, sys
from cifarctl.cli import main
sys.argv = ["cifarctl", "--version"]
try:
    main()
finally:
    print(os.environ["PYTORCH_ENABLE_MPS_FALLBACK"], "torch" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTORCH_ENABLE_MPS_FALLBACK"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "1 False"
