"""What latents are worth in bytes: quantisation, and the codecs' sizes without their headers."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from cifarctl import models
from cifarctl.data.synthetic import draw_synthetic
from cifarctl.rate_distortion import RateDistortionPoint, measure_rate_distortion

IMAGES = draw_synthetic(24, seed=2).images


@pytest.fixture(scope="module")
def points() -> list[RateDistortionPoint]:
    torch.manual_seed(0)
    return measure_rate_distortion(models.build("conv2", latent_dim=64), IMAGES, IMAGES)  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_a_codecs_rate_rises_with_its_quality_and_so_does_its_psnr(
    points: list[RateDistortionPoint], codec: str
) -> None:
    line = [point for point in points if point.codec == codec]
    assert [point.setting for point in line] == sorted(point.setting for point in line)
    assert all(a.size < b.size for a, b in pairwise(line))
    assert line[-1].psnr > line[0].psnr + 1


def test_headers_do_not_count(points: list[RateDistortionPoint]) -> None:
    files = []
    for image in IMAGES.permute(0, 2, 3, 1).numpy():
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "jpeg", quality=50)
        files.append(len(stream.getvalue()))
    (point,) = [point for point in points if point.codec == "jpeg" and point.setting == 50]
    assert 0 < point.size < np.mean(files) - 300  # tables of 300 bytes and more


def test_latents_take_their_bits_and_lose_little_at_eight(points: list[RateDistortionPoint]) -> None:
    line = {point.setting: point for point in points if point.codec == "latents"}
    assert {bits: point.size for bits, point in line.items()} == {bits: 64 * bits / 8 for bits in (2, 3, 4, 5, 6, 8)}
    torch.manual_seed(0)
    model = models.build("conv2", latent_dim=64).eval()
    with torch.no_grad():
        error = (model(IMAGES) - IMAGES.float() / 255).square().mean().item()
    assert line[8].psnr == pytest.approx(-10 * np.log10(error), abs=0.05)
