"""Kernels in Triton compute what PyTorch computes: on a GPU, or through Triton's interpreter, in a process apart."""

import os
import subprocess
import sys

import pytest
import torch

from cifarctl import hardware

pytestmark = pytest.mark.needs("Triton")

BEGIN = """
import torch, torch.nn.functional as F
from torch import nn
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

def error(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()

def last(x):
    return x.to(device).contiguous(memory_format=torch.channels_last)
"""


def run(code: str) -> str:
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}  # read when Triton is imported
    command = [sys.executable, "-W", "ignore", "-c", BEGIN + code]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **interpreted})
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


NORM = """
from cifarctl.models import triton_norm
done = 0
for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
    # Few programs go over their rows several times.
    for shape, triton_norm._PROGRAMS in (((3, 24, 7, 5), 2), ((2, 96, 4, 6), 1024), ((5, 70, 3, 3), 1024)):
        for kind in ("plain", "pool", "residual"):
            # Far from zero, where a mean of squares less the mean's square would have no digits left.
            x = last(torch.randn(shape) + 100 * torch.rand(shape[1], 1, 1)).to(dtype).requires_grad_()
            norm = nn.BatchNorm2d(shape[1], eps=1e-12, momentum=0.2).to(device)
            norm.weight.requires_grad = False
            norm.weight.copy_(torch.rand(shape[1]) + 0.5)
            norm.bias.data.copy_(torch.randn(shape[1]))
            residual = last(torch.randn(shape)).to(dtype).requires_grad_() if kind == "residual" else None
            found = triton_norm.TritonNormSiLU.apply(x, norm.weight, norm.bias, norm, residual, kind == "pool")
            inputs = [tensor for tensor in (x, norm.bias, residual) if tensor is not None]
            exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
            mean, var = torch.zeros_like(norm.bias).double(), torch.ones_like(norm.bias).double()
            z = F.max_pool2d(exact[0], 2) if kind == "pool" else exact[0]
            z = F.batch_norm(z, mean, var, norm.weight.double(), exact[1], True, 0.2, 1e-12)
            expected = F.silu(z + exact[2] if kind == "residual" else z)
            assert found.dtype == dtype and found.shape == expected.shape
            grad = last(torch.randn(expected.shape)).to(dtype)
            grads = torch.autograd.grad(found, inputs, grad)
            expected_grads = torch.autograd.grad(expected, exact, grad.double())
            for pair in zip((found, *grads), (expected, *expected_grads), strict=True):
                assert error(*pair) < limit, (dtype, shape, kind)
            assert error(norm.running_mean, mean) < 1e-6 and error(norm.running_var, var) < 1e-6
            assert norm.num_batches_tracked == 1
            done += 1
print(done, "the same")
"""


def test_norm_and_silu_of_a_gpu_are_the_plain_ones() -> None:
    assert run(NORM) == "18 the same\n"


WHITEN = """
from cifarctl.models.triton_whiten import TritonWhitenSiLU
for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
    for bias in (torch.randn(24, device=device).requires_grad_(), None):
        x, weight = last(torch.rand(3, 3, 9, 7)), last(torch.randn(24, 3, 2, 2))
        mean, std = torch.rand(3, 1, 1, device=device), torch.rand(3, 1, 1, device=device) + 0.2
        found = TritonWhitenSiLU.apply(x, mean, std, weight, bias, dtype)
        plain = F.silu(F.conv2d((x - mean) / std, weight, bias))
        assert found.dtype == dtype and error(found, plain) < limit
        if bias is None:
            assert not found.requires_grad
        else:
            grad = torch.randn_like(found)
            (got,), (expected,) = (torch.autograd.grad(y, bias, grad.to(y.dtype)) for y in (found, plain))
            assert error(got, expected) < limit
print("the same")
"""


def test_whitening_of_a_gpu_is_the_plain_one() -> None:
    assert run(WHITEN) == "the same\n"


AUGMENT = """
from cifarctl.training import augment, triton_augment
from cifarctl.data.dataset import to_float
augment.runs_kernels = lambda device: False
for size in (32, 13):
    for dtype in (torch.uint8, torch.float32):
        x = torch.randint(0, 256, (7, 3, size, size), dtype=torch.uint8, device=device)
        x = x if dtype == torch.uint8 else to_float(x)
        for by in (augment.shifts(x, 3), None):
            for mirrored in (augment.halves(x), None):
                plain = augment.shifted_flipped(x, by, mirrored, 3)
                assert torch.equal(triton_augment.shifted_flipped(x, by, mirrored, 3), plain)
indices = torch.randperm(50_000, device=device)[:1500]
for epoch in (0, 1, torch.tensor(2, device=device)):
    for seed in (0, 1, 123_456_789):
        assert torch.equal(triton_augment.alternating(indices, epoch, seed), augment.alternates(indices, epoch, seed))
x = torch.rand(3, 3, 32, 32, device=device)
for side in (24, 16, 23, 40):
    assert (triton_augment.resized(x, side) - augment.scale(x, side)).abs().max() < 1e-6
print("the same")
"""


def test_augmentation_of_a_gpu_is_the_plain_one() -> None:
    assert run(AUGMENT) == "the same\n"


MUON = """
from cifarctl.training import optim, triton_muon
optim.has_bf16 = lambda device: True
triton_muon._TILE = 16  # several in a matrix
shapes = ((40, 24), (24, 24), (24, 24), (24, 2))  # the last has more rows than columns
for arranged in (last, lambda x: x.to(device)):
    filters = [arranged(torch.randn(*shape, 3, 3)) for shape in shapes]
    plain = [nn.Parameter(weight.clone()) for weight in filters]
    optimizer = optim.AirbenchMuon([(str(i), weight) for i, weight in enumerate(plain)], 0.1, 1e-3, 512)
    momenta, plan = [torch.zeros_like(weight) for weight in filters], triton_muon.plan(filters)
    rate = torch.tensor(0.1, device=device)
    optim.runs_kernels = lambda device: False
    for _ in range(2):
        grads = [0.01 * torch.randn_like(weight) for weight in filters]
        for weight, grad in zip(plain, grads, strict=True):
            weight.grad = grad.clone()
        before = [weight.clone() for weight in filters]
        optimizer.step()
        triton_muon.step(plan, filters, grads, momenta, 0.6, rate, optim._QUINTIC, optim._ITERATIONS)
        for old, found, expected, momentum in zip(before, filters, plain, momenta, strict=True):
            moved = (expected - old).norm()
            assert (found - expected).norm() < 0.1 * moved  # each of the two is rounded to bf16 ten times
            assert torch.equal(momentum, optimizer.state[expected]["momentum"])
            found.copy_(expected.detach())
assert triton_muon.plan([torch.zeros(512, 512, 3, 3), *[torch.zeros(16, 16, 3, 3)] * 9]) is None  # nearly all padding
print("the same")
"""


def test_a_step_of_all_filters_at_once_is_that_of_each() -> None:
    assert run(MUON) == "the same\n"


STEP = """
from dataclasses import replace
from cifarctl import models
from cifarctl.training import augment
from cifarctl.models import fused
from cifarctl.training import objectives, optim, recipes

config = {"widths": (24, 24, 32), "depth": (1, 2, 3), "whiten_bias": True}
recipe = replace(recipes.RECIPES["airbench"]["fast"], model=config)
images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, device=device)
labels = torch.arange(6, device=device)
losses, states = [], []
for kernels in (False, True):  # the interpreter runs them on a CPU, if the code takes it for a GPU
    augment.runs_kernels = optim.runs_kernels = lambda device: kernels
    fused._trains_with_kernels = lambda layer, x: kernels
    torch.manual_seed(0)
    model = models.build("airbench", **recipe.model).to(device, memory_format=torch.channels_last)
    model.initialize(images)
    optimizer, objective = optim.build_optimizer(model, recipe), objectives.Classification(model, recipe, 0)
    optim.set_learning_rate(optimizer, 0.1)
    for step in range(2):
        indices = torch.arange(step, step + 4, device=device)
        x, targets = objective.augment(images[indices], labels[indices], indices, epoch=step, progress=0.1)
        assert x.shape == (4, 3, 24, 24)
        loss = objective.loss(x, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    states.append(model.state_dict())
assert abs(losses[0] - losses[2]) < 1e-5 and abs(losses[1] - losses[3]) < 1e-2 and losses[1] != losses[3], losses
plain, state = states
for name, tensor in state.items():
    if tensor.is_floating_point():
        assert torch.allclose(tensor, plain[name], rtol=0.05, atol=0.02), name
    else:
        assert torch.equal(tensor, plain[name]), name
print("the same")
"""


def test_a_training_step_with_kernels_is_that_without() -> None:
    assert run(STEP) == "the same\n"


def test_kernels_that_cannot_be_built_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setenv("PATH", "")  # no compiler
    monkeypatch.delenv("CC", raising=False)
    assert not hardware.runs_kernels.__wrapped__(gpu)
    monkeypatch.setattr(hardware, "can_build_kernels", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it fails
    monkeypatch.delitem(sys.modules, "cifarctl.triton_trial", raising=False)
    assert not hardware.runs_kernels.__wrapped__(gpu)
    assert not hardware.runs_kernels(torch.device("cpu"))
