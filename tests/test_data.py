"""Images as tensors: splits, folders, drawn shapes, augmentation, and the decoding of single files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cifarctl.api import train_classifier
from cifarctl.data import Arrays, Source
from cifarctl.data.arrays import NAME
from cifarctl.data.images import find_images, read_image, read_images
from cifarctl.data.splits import stratified_split
from cifarctl.errors import ArrayError, DataError, ImageError, UsageError
from cifarctl.inference import views
from cifarctl.training.augment import (
    alternating_flip,
    color_jitter,
    cutout,
    flip,
    mix,
    random_affine,
    random_crop,
    random_flip,
    scale,
)

from support import Cifarctl


class TestSplits:
    def test_the_validation_set_keeps_the_classes_proportions(self) -> None:
        labels = torch.tensor([0] * 700 + [1] * 200 + [2] * 100)
        train, val = stratified_split(labels, 100, seed=0)
        assert torch.bincount(labels[val]).tolist() == [70, 20, 10]
        assert sorted([*train.tolist(), *val.tolist()]) == list(range(1000))

    def test_sizes_add_up_where_proportions_do_not(self) -> None:
        labels = torch.arange(100) % 3
        _, val = stratified_split(labels, 10, seed=0)
        assert len(val) == 10

    def test_the_seed_alone_decides(self) -> None:
        labels = torch.arange(1000) % 10
        first, again, other = (stratified_split(labels, 100, seed)[1] for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    @pytest.mark.parametrize("size", [-1, 0, 10, 11])
    def test_an_impossible_size_is_named(self, size: int) -> None:
        with pytest.raises(UsageError, match=f"^`val_size` {size}:"):
            stratified_split(torch.zeros(10, dtype=torch.int64), size, 0)


class TestFolder:
    def test_any_names_sizes_and_formats(self, image_folder: Path) -> None:
        source = Source(str(image_folder))
        train, val, test = (source.load(split) for split in ("train", "val", "test"))
        assert train.classes == ("blue", "red")
        assert (len(train), len(val), len(test)) == (72, 8, 20)
        assert train.images.dtype == torch.uint8
        assert train.images.shape[1:] == (3, 32, 32)
        means = test.images.float().mean((2, 3))
        assert ((means[:, 0] > means[:, 2]).long() == test.labels).all()  # red is class 1

    def test_a_folder_without_images(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / "train" / name).mkdir(parents=True)
        with pytest.raises(DataError, match="no images"):
            Source(str(tmp_path)).load("train")

    def test_a_folder_with_one_class(self, tmp_path: Path) -> None:
        (tmp_path / "train" / "only").mkdir(parents=True)
        with pytest.raises(DataError, match="1 class, at least 2"):
            Source(str(tmp_path)).load("train")

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such folder"):
            Source(str(tmp_path / "none")).load("train")

    def test_a_hint_names_a_parameter_which_is_an_option_on_the_command_line(
        self, cifarctl: Cifarctl, tmp_path: Path
    ) -> None:
        with pytest.raises(DataError) as caught:
            Source(str(tmp_path / "data_none")).load("train")
        hint = "takes cifar10, cifar100, synthetic, or the path of your own pictures"
        assert caught.value.hint == f"`data` {hint}"
        done = cifarctl("train-clf", "--data", tmp_path / "data_none", "--out", tmp_path / "run")
        assert done.err.splitlines() == [f"error: {caught.value}", f"hint: --data {hint}"]

    @pytest.mark.needs("POSIX")
    def test_a_test_class_that_training_does_not_know(self, image_folder: Path, tmp_path: Path) -> None:
        for path in image_folder.glob("*/*"):
            (tmp_path / path.relative_to(image_folder)).parent.mkdir(exist_ok=True)
            (tmp_path / path.relative_to(image_folder)).symlink_to(path)
        (tmp_path / "test" / "green").mkdir()
        with pytest.raises(DataError, match="'green'"):
            Source(str(tmp_path)).load("test")

    def test_unreadable_images_are_counted_and_the_first_is_named(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / "train" / name).mkdir(parents=True)
            (tmp_path / "train" / name / "x.png").write_text("no image")
        with pytest.raises(DataError, match=r"a/x.png: not an image in a known format \(and 1 more\)"):
            Source(str(tmp_path)).load("train")


class TestSynthetic:
    def test_it_is_balanced_and_the_seed_decides(self) -> None:
        first, again, other = (Source("synthetic", seed=seed).load("test") for seed in (0, 0, 1))
        assert torch.bincount(first.labels).tolist() == [100] * 10
        assert torch.equal(first.images, again.images)
        assert not torch.equal(first.images, other.images)

    def test_no_colour_tells_the_class(self) -> None:
        test = Source("synthetic").load("test")
        means = torch.stack([test.images[test.labels == label].float().mean((0, 2, 3)) for label in range(10)])
        assert means.std(0).max() < 10  # of 255; single images differ by 50 and more


class TestArrays:
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), np.uint8)
    labels = np.arange(60) % 3

    def test_every_spelling_of_the_same_images_is_the_same_data(self) -> None:
        expected = Source(NAME, arrays=Arrays((self.images, self.labels)))
        nhwc = self.images.transpose(0, 2, 3, 1)
        read_only = self.images.copy()
        read_only.flags.writeable = False
        for images in (
            torch.from_numpy(self.images),
            nhwc,
            torch.from_numpy(self.images).float() / 255,
            (nhwc / 255).astype(np.float16),
            (nhwc / 255).astype(">f8"),
            read_only,
        ):
            for labels in (self.labels.astype(np.uint8), torch.from_numpy(self.labels), self.labels.tolist()):
                source = Source(NAME, arrays=Arrays((images, labels)))
                assert source.changes(expected.describe(), "train") == []
        assert expected.load("train").classes == ("0", "1", "2")

    def test_what_is_not_given_is_drawn_by_the_seed_in_proportion(self) -> None:
        first, again, other = (Source(NAME, seed=s, arrays=Arrays((self.images, self.labels))) for s in (0, 0, 1))
        splits = {split: first.load(split) for split in ("train", "val", "test")}
        assert {split: len(data) for split, data in splits.items()} == {"train": 49, "val": 5, "test": 6}
        assert torch.bincount(splits["test"].labels).tolist() == [2, 2, 2]
        every = torch.cat([data.images for data in splits.values()])
        assert sorted(map(bytes, every.numpy())) == sorted(map(bytes, self.images))
        assert torch.equal(again.load("val").images, splits["val"].images)
        assert not torch.equal(other.load("test").images, splits["test"].images)

    def test_parts_that_are_given_are_kept(self) -> None:
        parts = [(self.images[i : i + 20], self.labels[i : i + 20]) for i in (0, 20, 40)]
        source = Source(NAME, arrays=Arrays(parts[0], parts[1], parts[2], classes=("a", "b", "c")))
        for split, (images, labels) in zip(("train", "val", "test"), parts, strict=True):
            data = source.load(split)  # type: ignore[arg-type]
            assert data.classes == ("a", "b", "c")
            assert np.array_equal(data.images.numpy(), images)
            assert np.array_equal(data.labels.numpy(), labels)
        assert source.describe()["val_size"] == 20
        with pytest.raises(UsageError, match=r"^`val_size` 5: <arrays> has 20 images for validation"):
            Source(NAME, 5, arrays=source.arrays).check()

    def test_the_same_images_split_otherwise_are_other_data(self) -> None:
        halves = [(self.images[part], self.labels[part]) for part in (slice(30), slice(30, 60))]
        drawn = Source(NAME, arrays=Arrays((self.images, self.labels), test=halves[0]))
        given = Source(NAME, arrays=Arrays(halves[0], halves[1], test=halves[0]))
        assert given.changes(drawn.describe(), "val") == [
            "of the 60 images in train, some have other pixels or labels, or another order"
        ]
        assert given.changes(drawn.describe(), "test") == []

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (images[:, :1], labels, r"train images: uint8 \(60, 1, 32, 32\), not \(N, 3, 32, 32\) or"),
            (images[0], labels[:1], r"train images: uint8 \(3, 32, 32\), not"),
            (images.astype(int), labels, "train images: int64 .* not uint8 or float"),
            (images.astype(np.float32), labels, "float values from 0 to 255, not from 0 to 1"),
            (torch.full((60, 3, 32, 32), torch.nan), labels, "train images: NaN or infinite"),
            (images[:0], labels[:0], "train images: none"),
            (images.tolist(), labels, "train images: list, not a NumPy array or a tensor"),
            (images, labels[:-1], "train: 60 images and 59 labels"),
            (images, labels.astype(float), r"train labels: float64 \(60,\), not integers"),
            (images, labels > 1, r"train labels: bool \(60,\), not integers"),
            (images, labels[:, None], r"train labels: int64 \(60, 1\), not integers \(60,\)"),
            (images, labels - 1, "train labels: from -1 to 1, and they count from 0"),
            (images, labels * 2, "train labels: from 0 to 4, but none is 1"),
            (images, labels * 0, "train labels: 1 class, at least 2"),
            (images, None, "a classifier needs labels"),
        ],
    )
    def test_a_mistake_is_named_before_anything_is_written(
        self, images: Any, labels: Any, message: str, tmp_path: Path
    ) -> None:
        data = images if labels is None else (images, labels)
        with pytest.raises(ValueError, match=message) as caught:
            train_classifier(tmp_path / "run", data=data, arch="mlp", epochs=1)
        assert isinstance(caught.value, DataError)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"classes": ("a", "b")}, "train labels: up to 2, but there are 2 classes"),
            ({"classes": ("a", "b", "c", "d")}, "train labels: no images of d"),
            ({"classes": ("a", "b", "b")}, "two have the same name"),
            ({"classes": "abc"}, "not a sequence of names"),
            ({"test": (images[:1], np.array([3]))}, "test labels: up to 3, but there are 3 classes"),
            ({"val": images[:3]}, "val: images without labels"),
        ],
    )
    def test_parts_and_classes_fit_together(self, more: dict[str, Any], message: str) -> None:
        with pytest.raises(ArrayError, match=message):
            Arrays((self.images, self.labels), **more)

    def test_too_few_images_to_hold_any_out_for_testing(self) -> None:
        with pytest.raises(ArrayError, match="4 training images, 3 classes: none can be held out for testing"):
            Source(NAME, arrays=Arrays((self.images[:4], self.labels[:4]))).check()


class TestAugmentation:
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)

    def test_a_flip_mirrors_the_chosen_images_only(self) -> None:
        chosen = torch.arange(64) % 2 == 0
        flipped = flip(self.images, chosen)
        assert torch.equal(flipped[0], self.images[0].flip(2))
        assert torch.equal(flipped[1], self.images[1])

    def test_random_flips_mirror_about_half(self) -> None:
        torch.manual_seed(0)
        changed = (random_flip(self.images) != self.images).flatten(1).any(1).sum()
        assert 16 < changed < 48

    def test_alternating_flips_show_both_sides_in_every_two_epochs(self) -> None:
        indices = torch.arange(64)
        epochs = [alternating_flip(self.images, indices, epoch, seed=3) for epoch in range(3)]
        mirrored = [(epoch != self.images).flatten(1).any(1) for epoch in epochs]
        assert torch.equal(mirrored[0], ~mirrored[1])
        assert torch.equal(mirrored[0], mirrored[2])
        assert 16 < mirrored[0].sum() < 48

    def test_a_crop_is_a_window_of_the_reflected_image(self) -> None:
        torch.manual_seed(0)
        cropped = random_crop(self.images, 2)
        padded = F.pad(self.images.float(), (2,) * 4, mode="reflect").byte()
        seen = set()
        for image, source in zip(cropped, padded, strict=True):
            places = [
                (y, x) for y in range(5) for x in range(5) if torch.equal(image, source[:, y : y + 32, x : x + 32])
            ]
            assert len(places) == 1
            seen.add(places[0])
        assert len(seen) > 15  # of the 25 shifts

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
    def test_cutout_fills_at_most_its_square(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        images = torch.zeros(200, 3, 32, 32, dtype=dtype)
        filled = (cutout(images, 8) != 0).flatten(1).sum(1)
        assert filled.max() == 3 * 64
        assert filled.min() >= 3 * 16  # a corner
        assert (cutout(images, 8).amax((1, 2, 3)) == (128 if dtype == torch.uint8 else 0.5)).all()

    def test_an_affine_change_leaves_the_rest_of_the_images_alone(self) -> None:
        torch.manual_seed(0)
        images = self.images.float() / 255
        moved = random_affine(images, scale=1.25, degrees=15, shear=0.15, fraction=0.5)
        same = (moved == images).flatten(1).all(1)
        assert same.tolist() == [False] * 32 + [True] * 32
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert torch.equal(random_affine(images, 1.25, 15, 0.15, fraction=0.0), images)

    def test_an_affine_change_of_nothing_is_the_image(self) -> None:
        images = self.images.float() / 255
        assert torch.allclose(random_affine(images, 1.0, 0, 0, fraction=1.0), images, atol=1e-4)

    def test_a_zoom_by_two_makes_a_disc_four_times_as_large(self) -> None:
        torch.manual_seed(0)
        y, x = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(32) - 15.5, indexing="ij")
        disc = (x * x + y * y < 36).float().expand(300, 3, 32, 32)
        areas = random_affine(disc, scale=2.0, degrees=0, shear=0, fraction=1.0)[:, 0].sum((1, 2))
        ratio = areas / disc[0, 0].sum()
        assert ratio.min() < 0.6  # not a quarter: what is outside is reflected
        assert 2.8 < ratio.max() < 4.5

    def test_jitter_changes_colours_within_their_range(self) -> None:
        torch.manual_seed(0)
        images = 0.25 + self.images.float() / 510
        jittered = color_jitter(images, 0.2)
        assert jittered.min() >= 0
        assert jittered.max() <= 1
        ratio = jittered.mean((1, 2, 3)) / images.mean((1, 2, 3))
        assert 0.78 < ratio.min() < 0.87
        assert 1.13 < ratio.max() < 1.22
        assert torch.allclose(color_jitter(images, 0.0), images, atol=1e-6)

    def test_mixed_images_and_targets_hold_the_same_share_of_the_neighbour(self) -> None:
        torch.manual_seed(0)
        n = 400
        # Each image is of one grey, so that its mean says how much of the neighbour is in it.
        greys, targets = torch.linspace(0, 1, n), torch.eye(n)
        images = greys[:, None, None, None].expand(-1, 3, 32, 32)
        kinds = []
        for fractions in ({"mixup": 0.0, "cutmix": 1.0}, {"mixup": 1.0, "cutmix": 0.0}, {"mixup": 0.25, "cutmix": 0.5}):
            mixed, mixed_targets = mix(images, targets, **fractions)
            assert torch.allclose(mixed_targets.sum(1), torch.ones(n))
            assert torch.allclose(mixed.mean((1, 2, 3)), mixed_targets @ greys, atol=1e-5)
            changed = (mixed != images).flatten(1)
            kinds.append([changed.all(1).float().mean().item(), changed.any(1).float().mean().item()])
        (_, cut), (blended, _), (_, either) = kinds
        assert cut > 0.95
        assert blended > 0.95
        assert either == pytest.approx(0.75, abs=0.08)

    def test_scaling_keeps_the_mean_and_the_layout(self) -> None:
        images = self.images.float() / 255
        small = scale(images, 24)
        assert small.shape == (64, 3, 24, 24)
        assert small.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(small.mean((2, 3)), images.mean((2, 3)), atol=0.02)
        assert scale(images, 32) is images

    def test_the_views_of_test_time_augmentation_weigh_one(self) -> None:
        weighted = views(self.images)
        assert len(weighted) == 6
        assert sum(weight for weight, _ in weighted) == pytest.approx(1)
        assert torch.allclose(weighted[0][1], self.images.float() / 255)
        assert {tuple(view.shape) for _, view in weighted} == {(64, 3, 32, 32)}


class TestImageFiles:
    """Each odd file has one decided behaviour."""

    def save(self, path: Path, image: Image.Image, **options: object) -> Path:
        image.save(path, **options)  # type: ignore[arg-type]
        return path

    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16"])
    def test_every_mode_decodes_to_three_channels(self, tmp_path: Path, mode: str) -> None:
        if mode == "I;16":
            image = Image.fromarray(np.full((40, 20), 40_000, np.uint16))
        else:
            image = Image.new("RGB", (20, 40), (200, 100, 50)).convert(mode)
        path = self.save(tmp_path / ("x.tiff" if mode == "CMYK" else "x.png"), image)
        pixels = read_image(path)
        assert pixels.shape == (3, 32, 32)
        assert pixels.dtype == np.uint8
        if mode == "I;16":
            assert abs(int(pixels.mean()) - 40_000 * 255 // 65_535) <= 1  # scaled, not clipped

    def test_a_32_by_32_image_is_taken_to_the_last_bit(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        path = self.save(tmp_path / "x.png", Image.fromarray(pixels))
        assert np.array_equal(read_image(path), pixels.transpose(2, 0, 1))

    def test_transparency_lies_on_white(self, tmp_path: Path) -> None:
        path = self.save(tmp_path / "x.png", Image.new("RGBA", (32, 32), (0, 0, 0, 0)))
        assert (read_image(path) == 255).all()

    def test_exif_orientation_is_applied(self, tmp_path: Path) -> None:
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[:16] = 255
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down
        path = self.save(tmp_path / "x.png", Image.fromarray(pixels), exif=exif)
        decoded = read_image(path)
        assert decoded[:, :16].max() == 0
        assert decoded[:, 16:].min() == 255

    def test_the_first_frame_of_an_animation_counts(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
        path = self.save(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])
        assert read_image(path)[0].min() == 255

    def test_a_single_pixel_fills_the_image(self, tmp_path: Path) -> None:
        assert (read_image(self.save(tmp_path / "x.png", Image.new("RGB", (1, 1), (9, 9, 9)))) == 9).all()

    def test_a_bomb_is_refused_by_its_size(self, tmp_path: Path) -> None:
        path = self.save(tmp_path / "x.png", Image.new("1", (20_000, 20_000)))
        with pytest.raises(ImageError, match="too large"):
            read_image(path)

    @pytest.mark.needs("POSIX")
    def test_what_is_no_image(self, tmp_path: Path) -> None:
        (tmp_path / "text.png").write_text("hello")
        (tmp_path / "empty.png").touch()
        (tmp_path / "folder.png").mkdir()
        os.mkfifo(tmp_path / "fifo.png")
        whole = self.save(tmp_path / "whole.jpg", Image.new("RGB", (64, 64)))
        (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[:300])
        reasons = {}
        for name in ("text.png", "empty.png", "folder.png", "fifo.png", "half.jpg", "none.png"):
            with pytest.raises(ImageError) as caught:
                read_image(tmp_path / name)
            reasons[name] = str(caught.value)
        assert reasons["text.png"] == reasons["empty.png"] == "not an image in a known format"
        assert reasons["folder.png"] == reasons["fifo.png"] == "not a regular file"
        assert reasons["none.png"] == "no such file"
        assert reasons["half.jpg"]

    def test_many_files_come_in_order_with_errors_in_place(self, tmp_path: Path) -> None:
        paths = []
        for i in range(100):
            path = tmp_path / f"{i}.png"
            if i % 10 == 3:
                path.write_text("broken")
            else:
                Image.new("RGB", (32, 32), (i, i, i)).save(path)
            paths.append(path)
        for i, (path, image) in enumerate(read_images(iter(paths), window=32)):
            assert path == paths[i]
            assert isinstance(image, ImageError) if i % 10 == 3 else image.max() == i  # type: ignore[union-attr]

    @pytest.mark.needs("POSIX")
    def test_folders_are_searched_by_suffix_and_links_to_folders_are_followed_once(self, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        for name in ("b/2.JPG", "a.png", "b/notes.txt", "c.webp"):
            (tmp_path / name).touch()
        (tmp_path / "b" / "circle").symlink_to(tmp_path)
        found = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)]
        assert found == ["a.png", "c.webp", "b/2.JPG"]
