"""The model library: what every registered model promises, and the layers where a mistake would hide."""

import copy
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cifarctl import hardware, models
from cifarctl.data.synthetic import draw_synthetic
from cifarctl.inference import predict_logits
from cifarctl.models import layers
from cifarctl.models.autoencoders import ResidualAutoencoder
from cifarctl.models.base import Autoencoder, Classifier, Model
from cifarctl.models.classifiers import MLP, Airbench, _Group
from cifarctl.models.fourier import FourierConv, fourier_conv_pays
from cifarctl.models.layers import Conv3x3, MaxPool2x2, _gpu_pool, _SideBySideConv
from cifarctl.models.pca import fit_pca, pca_reconstruct

IMAGES = draw_synthetic(300, seed=5).images


def psnr(outputs: torch.Tensor, images: torch.Tensor) -> float:
    return -10 * math.log10((outputs - images.float() / 255).square().mean().item())


@pytest.mark.parametrize("name", models.names("autoencoder"))
@pytest.mark.parametrize("latent_dim", [64, 256])
def test_an_autoencoder_goes_through_its_stated_number_of_floats(name: str, latent_dim: int) -> None:
    model = models.build(name, latent_dim=latent_dim).eval()
    assert isinstance(model, Autoencoder)
    with torch.no_grad():
        latents = model.encode(IMAGES[:4])
        output = model(IMAGES[:4])
    assert latents.shape == (4, latent_dim)
    assert output.shape == (4, 3, 32, 32)
    assert 0 <= output.min() <= output.max() <= 1
    assert torch.allclose(output, model.decode(latents), atol=1e-6)


@pytest.mark.parametrize("name", models.names("classifier"))
def test_a_classifier_gives_a_logit_a_class(name: str) -> None:
    model = models.build(name, classes=7).eval()
    assert isinstance(model, Classifier)
    with torch.no_grad():
        assert model(IMAGES[:4]).shape == (4, 7)


@pytest.mark.parametrize("name", models.REGISTRY)
def test_bytes_and_floats_are_the_same_input(name: str) -> None:
    model = models.build(name).eval()
    with torch.no_grad():
        assert torch.allclose(model(IMAGES[:4]), model(IMAGES[:4].float() / 255), atol=1e-6)


@pytest.mark.parametrize("name", models.REGISTRY)
def test_python_draws_nothing_in_a_training_step_but_its_variant(name: str) -> None:
    model = models.build(name).to("meta").train()
    assert isinstance(model, Model)
    model.variant = model.draw_variant()
    # On another device than the CPU, nothing else asks the CPU's generator for random numbers.
    before = torch.get_rng_state()
    model(torch.empty(4, 3, 32, 32, device="meta"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("latent_dim", [1, 32, 100, 256])
def test_the_default_autoencoder_starts_as_pca(latent_dim: int) -> None:
    model = ResidualAutoencoder(latent_dim, width=8).eval()
    model.initialize(IMAGES)
    with torch.no_grad():
        started = psnr(model(IMAGES), IMAGES)
    assert started == pytest.approx(psnr(pca_reconstruct(IMAGES, IMAGES, latent_dim), IMAGES), abs=1e-3)


def drawing(steps: int = 3, strength: float = 5.0) -> ResidualAutoencoder:
    """An autoencoder whose decoder has something to say, as after training: its last layers are not zero."""
    torch.manual_seed(0)
    model = ResidualAutoencoder(16, width=8, blocks=1, steps=steps)
    model.initialize(IMAGES)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model.decoder[-2].get_parameter("weight").mul_(strength)
    return model


def test_latents_are_fitted_to_each_image() -> None:
    errors = []
    for steps in (0, 1, 5, 16):
        model = drawing(steps=steps).eval()
        with torch.inference_mode():  # as in use
            errors.append((model(IMAGES[:50]) - IMAGES[:50].float() / 255).square().mean((1, 2, 3)))
    for more, fewer in zip(errors[1:], errors, strict=False):
        assert more.mean() < fewer.mean()
    assert (errors[2] < errors[0]).float().mean() > 0.9

    # Each image by itself, and the best latents by another road: many full steps from zero.
    model = drawing(steps=16).eval()
    z = model.encode(IMAGES[:1])
    assert torch.allclose(model.encode(IMAGES[:8])[:1], z, atol=1e-4)
    assert not z.requires_grad
    pixels = IMAGES[:1].float() / 255

    def error(latents: torch.Tensor) -> torch.Tensor:
        return (model.decode(latents) - pixels).square().sum()

    model.train()  # pixels beyond black and white count too
    other = torch.zeros_like(z)
    for _ in range(300):
        other.requires_grad_()
        other = (other - torch.autograd.grad(error(other), other)[0]).detach()
    assert error(z).item() == pytest.approx(error(other).item(), rel=0.02)


def test_a_step_that_would_go_too_far_is_cut() -> None:
    model = drawing(strength=100).eval()
    with torch.no_grad():
        model.steps = 0
        before = (model(IMAGES[:50]) - IMAGES[:50].float() / 255).square().mean()
        model.steps = 16
        after = (model(IMAGES[:50]) - IMAGES[:50].float() / 255).square().mean()
    assert after < before


def test_training_moves_the_decoder_and_fine_tuning_the_components_too() -> None:
    model = drawing()
    for tuned in (False, True):
        model.zero_grad()
        model.components.requires_grad_(tuned)
        model(IMAGES[:8].float() / 255).square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.decoder.parameters())
        assert (model.components.grad is not None) == tuned


def test_the_rotation_gives_each_cell_of_the_grid_its_own_pixels() -> None:
    model = ResidualAutoencoder(256, width=8)
    model.initialize(IMAGES)
    assert torch.allclose(model.rotation @ model.rotation.T, torch.eye(256), atol=1e-4)
    # What one float of a cell draws: how much of its energy lies on the cell's 4×4 pixels and the eight cells around.
    drawn = (model.components @ model.rotation).square().view(3, 8, 4, 8, 4, 4, 8, 8).sum((0, 2, 4))
    near = sum(drawn[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2, :, y, x].sum() for y in range(8) for x in range(8))
    assert near / drawn.sum() > 2 * 9 / 64  # spread evenly, 9 of 64 cells would hold 9 / 64 of it


@pytest.mark.parametrize(
    "config", [{"latent_dim": 3073}, {"latent_dim": 0}, {"latent_dim": "256"}, {"latent_dim": 10**9}, {"width": -1}]
)
def test_an_impossible_configuration_is_a_value_error(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(config))):
        models.build("resconv", **config)


@pytest.mark.parametrize("side", [3, 4, 7, 8, 16])
@pytest.mark.parametrize("n", [16, 6])
def test_the_side_by_side_weight_gradient_is_the_plain_one(side: int, n: int) -> None:
    torch.manual_seed(0)
    conv = Conv3x3(8, 12, bias=True)
    x = torch.randn(n, 8, side, side, requires_grad=True)
    grad = torch.randn(n, 12, side, side)
    wanted = torch.autograd.grad(F.conv2d(x, conv.weight, padding=1), (x, conv.weight), grad)
    found = torch.autograd.grad(_SideBySideConv.apply(x, conv.weight), (x, conv.weight), grad)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("side", [*range(1, 17), 31])
def test_the_fourier_convolution_is_the_plain_one(side: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, side, side, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    plain, by_transforms = F.conv2d(x, weight, padding=1), FourierConv.apply(x, weight)
    grad = torch.randn_like(plain)
    wanted = (plain, *torch.autograd.grad(plain, (x, weight), grad))
    found = (by_transforms, *torch.autograd.grad(by_transforms, (x, weight), grad))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("side", [3, 7, 15])
def test_the_fourier_convolution_rounds_to_half_a_percent_in_bf16(side: int) -> None:
    torch.manual_seed(0)
    x, weight, grad = (
        torch.randn(size).bfloat16() for size in ((64, 48, side, side), (64, 48, 3, 3), (64, 64, side, side))
    )
    x.requires_grad_()
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = FourierConv.apply(x, weight)
    found = (y, *torch.autograd.grad(y, (x, weight), grad))
    y = F.conv2d(x.double(), weight.double(), padding=1)
    for one, other in zip(found, (y, *torch.autograd.grad(y, (x, weight), grad.double())), strict=True):
        assert one.dtype == torch.bfloat16
        assert 0.001 < (one - other).norm() / other.norm() < 0.01


@pytest.mark.parametrize(("unit", "pays"), [("avx512", True), ("amx", False), ("emulated", False)])
def test_in_bf16_the_fourier_convolution_is_for_vectors(unit: str, pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_bf16", lambda: unit)
    torch.manual_seed(0)
    conv = Conv3x3(8, 12, bias=True)
    x = torch.randn(64, 8, 7, 7)
    pays &= torch.backends.mkldnn.is_available()
    assert fourier_conv_pays(x.bfloat16(), conv.weight) == pays
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    assert type(y.grad_fn.next_functions[0][0]).__name__ == (
        "FourierConvBackward" if pays else "_SideBySideConvBackward"
    )
    wanted = torch.autograd.grad(conv(x).square().sum(), tuple(conv.parameters()))
    for one, other in zip(torch.autograd.grad(y.float().square().sum(), tuple(conv.parameters())), wanted, strict=True):
        assert one.dtype == torch.float32
        assert torch.allclose(one, other, rtol=0, atol=0.02 * float(other.abs().max()))


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)])
def test_the_convolution_of_many_images_is_the_plain_one(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = Conv3x3(8, 12, bias=True)
    assert conv.bias is not None
    x = torch.randn(64, 8, *size, requires_grad=True)
    assert fourier_conv_pays(x, conv.weight) == (size[0] == size[1] and torch.backends.mkl.is_available())
    grad = torch.randn(64, 12, *size)
    wanted = torch.autograd.grad(F.conv2d(x, conv.weight, conv.bias, padding=1), (x, conv.weight, conv.bias), grad)
    found = torch.autograd.grad(conv(x), (x, conv.weight, conv.bias), grad)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_many_images_are_convolved_by_transforms_without_a_gradient_too(training: bool) -> None:
    torch.manual_seed(0)
    conv = Conv3x3(8, 12, bias=True).train(training)
    x = torch.randn(128, 8, 7, 7)
    with torch.inference_mode():
        assert fourier_conv_pays(x, conv.weight) == torch.backends.mkl.is_available()
        assert not fourier_conv_pays(x[:127], conv.weight)
        assert torch.allclose(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1), rtol=1e-4, atol=1e-4)


def test_transforms_of_filters_are_kept_until_the_filters_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifarctl.models.layers.fourier_conv_pays", lambda *_: True)  # without MKL too
    torch.manual_seed(0)
    conv = Conv3x3(8, 12)
    x = torch.randn(128, 8, 7, 7)

    def check(conv: Conv3x3 = conv, x: torch.Tensor = x) -> torch.Tensor:
        with torch.inference_mode():
            assert torch.allclose(conv(x), F.conv2d(x, conv.weight, padding=1), rtol=1e-4, atol=1e-4)
        assert conv._cached_filters is not None
        return conv._cached_filters[1]

    kept = check()
    assert check() is kept
    assert check(x=x[..., :5, :5]) is not kept
    check(copy.deepcopy(conv))
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    conv(x).sum().backward()
    assert conv._cached_filters is None
    check()
    optimizer.step()
    check()
    with torch.no_grad():
        conv.weight.mul_(2)
    check()
    conv.load_state_dict(Conv3x3(8, 12).state_dict())
    check()
    conv.weight = Conv3x3(8, 12).weight
    check()


@pytest.mark.parametrize("side", [3, 4, 7, 8, 16])
@pytest.mark.parametrize("n", [16, 6])
def test_the_convolution_is_the_plain_one_with_and_without_autocast(side: int, n: int) -> None:
    torch.manual_seed(0)
    conv = Conv3x3(8, 12, bias=True)
    assert conv.bias is not None
    x, grad = torch.randn(n, 8, side, side), torch.randn(n, 12, side, side)
    for values in (x, grad, conv.weight.data, conv.bias.data):  # what bf16 has exactly: only results are rounded
        values.copy_(values.bfloat16())
    x.requires_grad_()
    wanted = torch.autograd.grad(F.conv2d(x, conv.weight, conv.bias, padding=1), (x, conv.weight, conv.bias), grad)
    found = torch.autograd.grad(conv(x), (x, conv.weight, conv.bias), grad)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    for one, other in zip(torch.autograd.grad(y, (x, conv.weight, conv.bias), grad.bfloat16()), wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-2, atol=1e-2 * float(other.abs().max()))


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pool_that_reuses_memory_is_the_plain_one(side: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    pool = MaxPool2x2()
    for n in (3, 3, 2):  # the second step uses the first one's memory, the third another size
        # All values differ, so that there is one maximum in every window.
        values = torch.randperm(n * 5 * side * side)[: n * 5 * side * side].float()
        x = (values % 251 if dtype == torch.bfloat16 else values).to(dtype).view(n, 5, side, side)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        grad = torch.randn(n, 5, side // 2, side // 2, dtype=dtype)
        plain, found = F.max_pool2d(x, 2), pool(x)
        assert torch.equal(found, plain)
        expected = torch.autograd.grad(plain, x, grad)[0]
        assert torch.equal(torch.autograd.grad(found, x, grad)[0], expected)
    with torch.no_grad():
        assert torch.equal(pool(x), plain)


def test_the_pool_of_a_large_batch_is_that_of_its_images() -> None:
    x = torch.randn(5, 16, 401, 401).contiguous(memory_format=torch.channels_last).requires_grad_()  # 49 MiB: 6 parts
    grad = torch.randn(5, 16, 200, 200)

    def pooled(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(MaxPool2x2()(x), x, grad)[0]

    each = torch.cat([pooled(*one) for one in zip(x.split(1), grad.split(1), strict=True)])
    assert torch.equal(pooled(x, grad), each)
    assert torch.equal(MaxPool2x2()(x), F.max_pool2d(x, 2))


GPU_POOL = """
import torch, torch.nn.functional as F
from cifarctl.models.triton_pool import TritonMaxPool2x2
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for shape in ((3, 24, 7, 5), (2, 96, 4, 6), (5, 70, 3, 3), (1, 64, 9, 9)):
        x = torch.randn(shape, device=device).round(decimals=1).to(dtype)  # some are equal
        x[0, 0, 1, 1] = float("nan")
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        plain, found = F.max_pool2d(x, 2), TritonMaxPool2x2.apply(x)
        assert torch.equal(found.nan_to_num(99), plain.nan_to_num(99)) and found[0, 0, 0, 0].isnan()
        grad = torch.randn_like(plain)
        (expected,), (got,) = torch.autograd.grad(plain, x, grad), torch.autograd.grad(found, x, grad)
        assert torch.equal(got, expected) and got.dtype == dtype
print("12 the same")
"""


@pytest.mark.needs("Triton")
def test_the_pool_of_a_gpu_is_the_plain_one() -> None:
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}  # read when Triton is imported
    ran = subprocess.run(
        [sys.executable, "-c", GPU_POOL], capture_output=True, text=True, check=False, env={**os.environ, **interpreted}
    )
    assert ran.stdout == "12 the same\n", ran.stderr


def test_a_gpu_pools_as_pytorch_does_where_kernels_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no compiler
    monkeypatch.delenv("CC", raising=False)
    assert not hardware.can_build_kernels()
    assert _gpu_pool.__wrapped__(torch.device("cuda")) is None
    monkeypatch.setattr(layers, "can_build_kernels", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it fails
    monkeypatch.delitem(sys.modules, "cifarctl.models.triton_pool", raising=False)
    assert _gpu_pool.__wrapped__(torch.device("cuda")) is None


def test_whitening_makes_patches_uncorrelated() -> None:
    model = Airbench()
    model.initialize(IMAGES)
    with torch.no_grad():
        filters = model.whiten.weight[:12]
        patches = F.conv2d(model.normalize(IMAGES), filters).permute(1, 0, 2, 3).flatten(1)
    covariance = patches @ patches.T / patches.shape[1]
    assert (covariance - torch.diag(covariance.diagonal())).abs().max() < 0.02
    assert (covariance.diagonal() < 1.01).all()
    assert torch.equal(model.whiten.weight[12:], -filters)


def test_an_mlp_on_latents_standardises_them() -> None:
    encoder = {"model": "conv2", "config": {"latent_dim": 64}}
    model = models.build("mlp", encoder=encoder)
    assert isinstance(model, MLP)
    model.initialize(IMAGES)
    with torch.no_grad():
        latents = (model.features(IMAGES) - model.latent_mean) / model.latent_std
    assert latents.mean(0).abs().max() < 1e-3
    assert (latents.std(0) - 1).abs().max() < 1e-3


def test_an_encoder_must_be_an_autoencoder() -> None:
    with pytest.raises(ValueError, match="airbench"):
        models.build("mlp", encoder={"model": "airbench", "config": {}})


@pytest.mark.parametrize(
    "config", [{"widths": (64, 256)}, {"widths": (64, 256, 10**9)}, {"depth": 0}, {"depth": (2, 2)}, {"pool": "mean"}]
)
def test_an_impossible_classifier_is_a_value_error(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^(widths|depth|pool)"):
        Airbench(**config)  # type: ignore[arg-type]


def test_a_deep_group_adds_its_first_activation_before_the_last() -> None:
    torch.manual_seed(0)
    model = Airbench(widths=(24, 24, 24), depth=3).eval()
    group = model.groups[0]
    assert isinstance(group, _Group)
    x = torch.randn(2, 24, 15, 15)
    with torch.no_grad():
        first = F.silu(group.norms[0](F.max_pool2d(group.convs[0](x), 2)))
        middle = F.silu(group.norms[1](group.convs[1](first)))
        assert torch.allclose(group(x), F.silu(group.norms[2](group.convs[2](middle)) + first), atol=1e-5)


def test_groups_may_differ_in_depth_and_their_mean_may_count_too() -> None:
    torch.manual_seed(0)
    model = Airbench(widths=(24, 24, 32), depth=(1, 2, 3), pool="max+mean").eval()
    assert [len(group.convs) for group in model.groups if isinstance(group, _Group)] == [1, 2, 3]
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        maps = model.groups(F.silu(model.whiten(model.normalize(x))))
        assert torch.allclose(model(x), model.head(maps.amax((2, 3)) + maps.mean((2, 3))) / 32, atol=1e-6)


@pytest.mark.parametrize("side", [16, 20, 24, 31])
def test_the_classifier_takes_images_of_other_sides(side: int) -> None:
    model = Airbench(widths=(24, 24, 24)).train()
    logits = model(torch.rand(4, 3, side, side))
    logits.sum().backward()
    assert logits.shape == (4, 10)


def test_test_time_augmentation_is_the_weighted_mean_of_six_views_where_the_model_is_unsure() -> None:
    torch.manual_seed(0)
    model = Airbench().eval()
    model.initialize(IMAGES)
    images = IMAGES[:8]
    alone = predict_logits(model, images)
    # A temperature that makes half of them surer than 95 %: their margins over it are about ln 19 and more.
    best, second = alone.topk(2).values.unbind(1)
    model.temperature.copy_((best - second).median() / 4)
    alone = predict_logits(model, images)
    sure = alone.softmax(1).amax(1) >= 0.95
    assert 0 < sure.sum() < len(images)
    floats = images.float() / 255
    padded = F.pad(floats, (1, 1, 1, 1), mode="reflect")
    shifted = [padded[:, :, :32, :32], padded[:, :, 2:, 2:]]
    with torch.no_grad():
        by_hand = 0.25 * (model(floats) + model(floats.flip(3)))
        by_hand += sum(0.125 * (model(view) + model(view.flip(3))) for view in shifted)
    expected = torch.where(sure[:, None], alone, by_hand)
    assert torch.allclose(predict_logits(model, images, tta=True), expected, rtol=1e-4, atol=1e-4)


def test_test_time_augmentation_leaves_a_batch_alone_that_the_model_is_sure_of() -> None:
    model = Airbench().eval()
    model.initialize(IMAGES)
    model.temperature.fill_(1e-6)
    alone = predict_logits(model, IMAGES[:8])
    assert alone.softmax(1).amax(1).min() >= 0.95
    assert torch.equal(predict_logits(model, IMAGES[:8], tta=True), alone)


@pytest.mark.parametrize("count", [200, 1100])  # by their singular values, and by their covariance
def test_pca_is_the_best_linear_reconstruction(count: int) -> None:
    images = torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels = images.flatten(1).float() / 255
    mean, components = fit_pca(images)
    assert torch.allclose(mean, pixels.mean(0), atol=1e-4)
    assert torch.allclose(components.T @ components, torch.eye(3072), atol=1e-3)
    # The squared error that k components leave is the sum of the other squared singular values.
    singular = torch.linalg.svdvals((pixels - pixels.mean(0)).double())
    mse = (singular[20:] ** 2).sum().item() / pixels.numel()
    # Clamping to [0, 1] can only help.
    found = psnr(pca_reconstruct(images, images, 20), images)
    assert -10 * math.log10(mse) - 1e-3 <= found < -10 * math.log10(mse) + 0.5


class FullGpu(Airbench):
    """Has memory for `fits` images at a time."""

    fits = 300

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        if len(features) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().classify(features)


def test_batches_that_a_gpu_has_no_memory_for_are_halved() -> None:
    model = FullGpu(widths=(24, 24, 24)).eval()
    images = torch.randint(256, (700, 3, 32, 32), dtype=torch.uint8)
    logits = predict_logits(model, images, batch_size=2500)
    assert torch.allclose(logits, predict_logits(model, images), atol=1e-4)
    model.fits = 50  # less than a batch has elsewhere
    with pytest.raises(torch.OutOfMemoryError):
        predict_logits(model, images, batch_size=2500)
