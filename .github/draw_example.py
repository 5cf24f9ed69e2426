"""Draw the picture that comes with the package, a ship at sea, which `cifarctl predict example` classifies.

    python .github/draw_example.py

It is drawn, not photographed, so that it is the project's own.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

PICTURE = Path(__file__).parent.parent / "cifarctl" / "data" / "example.jpg"
SIDE, SCALE = 384, 3  # drawn three times as large, so that edges are smooth
HORIZON = 0.5
CONTAINERS = ((168, 72, 52), (62, 100, 140), (196, 152, 72), (88, 120, 92), (150, 150, 152))


def draw(seed: int = 1) -> Image.Image:
    """The ship with clouds, waves and containers drawn from `seed`, RGB, 384×384."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(_sky_and_sea(rng, SIDE * SCALE).clip(0, 255).astype(np.uint8))
    _draw_ship(ImageDraw.Draw(image), image.width, rng)
    foam = Image.new("L", image.size)
    pen = ImageDraw.Draw(foam)
    for _ in range(260):
        x, y = rng.uniform(0.07, 0.93), 0.64 + abs(rng.normal(0, 0.008))
        box = np.array([x, y, x + rng.uniform(0.01, 0.05), y + 0.005]) * image.width
        pen.ellipse(box.tolist(), fill=int(rng.uniform(90, 230)))
    image.paste((226, 234, 238), mask=foam.filter(ImageFilter.GaussianBlur(1.5 * SCALE)))
    image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(0.6))
    grain = rng.normal(0, 2.2, (SIDE, SIDE, 1))  # as a camera's sensor adds
    return Image.fromarray((np.asarray(image, float) + grain).clip(0, 255).astype(np.uint8))


def _sky_and_sea(rng: np.random.Generator, side: int) -> np.ndarray:
    """Gradients with clouds above the horizon and waves below it, float (side, side, 3), about 0 to 255."""
    y, x = np.linspace(0, 1, side)[:, None], np.linspace(0, 1, side)[None]
    height, depth = (y / HORIZON)[..., None], ((y - HORIZON) / (1 - HORIZON))[..., None]
    sky = np.array([110, 160, 210]) * (1 - height) + np.array([222, 230, 234]) * height
    sea = np.array([70, 112, 140]) * (1 - depth) + np.array([22, 52, 84]) * depth

    noise = np.zeros((side, side))
    for k in (3, 6, 12, 24):  # clouds are wider than they are high
        coarse = Image.fromarray((rng.random((4 * k, k)) * 255).astype(np.uint8))
        noise += np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), float) / k
    noise = (noise - noise.mean()) / noise.std()
    cloud = np.clip(0.35 * noise, 0, 0.8)[..., None]

    near = depth[..., 0].clip(0.02, 1)
    waves = np.zeros((side, side))
    for _ in range(14):
        frequency, phase, slant = rng.uniform(10, 60), rng.uniform(0, 2 * np.pi), rng.uniform(-6, 6)
        waves += np.sin(2.2 * frequency * np.log(near + 0.05) + slant * x / near**0.5 + phase)
    return np.where(depth < 0, sky * (1 - cloud) + 245 * cloud, sea + (3.2 * waves * near**0.4)[..., None])


def _draw_ship(pen: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    """A container ship, seen from the side. Coordinates are fractions of the picture's side."""

    def polygon(*points: tuple[float, float], fill: tuple[int, int, int]) -> None:
        pen.polygon([(x * side, y * side) for x, y in points], fill=fill)

    def box(left: float, top: float, right: float, bottom: float, fill: tuple[int, int, int]) -> None:
        pen.rectangle((left * side, top * side, right * side, bottom * side), fill=fill)

    polygon((0.08, 0.50), (0.92, 0.48), (0.86, 0.635), (0.14, 0.635), fill=(38, 44, 58))  # the hull
    polygon((0.136, 0.615), (0.87, 0.615), (0.86, 0.645), (0.145, 0.645), fill=(140, 44, 36))
    box(0.14, 0.33, 0.30, 0.50, fill=(236, 236, 230))  # the bridge
    box(0.12, 0.38, 0.32, 0.40, fill=(205, 206, 204))
    for i in range(4):
        for top in (0.345, 0.42):
            box(0.155 + 0.036 * i, top, 0.178 + 0.036 * i, top + 0.02, fill=(40, 54, 70))
    box(0.20, 0.24, 0.26, 0.33, fill=(196, 70, 44))  # the funnel
    box(0.20, 0.245, 0.26, 0.262, fill=(30, 30, 34))
    for stack in range(8):
        left = 0.335 + 0.062 * stack
        for level in range(3 if stack < 7 else 2):
            top = 0.454 - 0.036 * level
            box(left, top, left + 0.058, top + 0.033, fill=CONTAINERS[rng.integers(len(CONTAINERS))])
    box(0.846, 0.36, 0.854, 0.48, fill=(70, 74, 80))  # the masts
    box(0.227, 0.16, 0.233, 0.24, fill=(70, 74, 80))


if __name__ == "__main__":
    draw().save(PICTURE, quality=82)
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")
