"""Train, validation and test: which images are held out."""

import torch
from torch import Tensor

from cifarctl.errors import UsageError


def default_val_size(n: int) -> int:
    """2,000 images (4 % of CIFAR-10's 50,000), or a tenth if that is fewer, and at least one."""
    return max(1, min(2000, n // 10))


def stratified_split(labels: Tensor, val_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw a validation set that keeps the classes' proportions.

    labels: int64 (N,). Returns (train, val), indices in ascending order. The draw depends on `labels`, `val_size` and
    `seed` alone. Every class keeps at least one training image. Raises UsageError unless that can be.
    """
    n = len(labels)
    counts = torch.bincount(labels)
    most = n - int((counts > 0).sum())
    if not 0 < val_size <= most:
        raise UsageError(
            f"`val_size` {val_size}: of {n} training images, each class must keep one, so it must be from 1 to {most}"
        )
    generator = torch.Generator().manual_seed(seed)
    quota = torch.minimum(_proportional(counts, val_size), (counts - 1).clamp_min(0))
    while (missing := val_size - int(quota.sum())) > 0:  # instead of the last images of small classes
        spare = counts - 1 - quota
        quota[spare.argsort(descending=True, stable=True)[: min(missing, int((spare > 0).sum()))]] += 1
    shuffled = torch.randperm(n, generator=generator)
    held_out = torch.zeros(n, dtype=torch.bool)
    for label, count in enumerate(quota.tolist()):
        held_out[shuffled[labels[shuffled] == label][:count]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def draw_test(labels: Tensor, seed: int, *, keep: int = 1) -> tuple[Tensor, Tensor] | None:
    """Draw a test set of a tenth, at most 2,000 images, that keeps the classes' proportions, as `stratified_split`.

    keep: how many images must remain beside one of each class. None if there are too few images.
    """
    spare = len(labels) - len(labels.unique()) - keep
    return stratified_split(labels, min(default_val_size(len(labels)), spare), seed) if spare > 0 else None


def choose_shown(labels: Tensor, count: int, seed: int = 0) -> Tensor:
    """Which images stand for a split when `count` of them are shown, int64, ascending: the first ones. In a split
    that lies class by class, as folders do, those would be of one class: there it is a random sample, the same each
    time, with as many images of each class as of any other, as far as there are any.

    labels: int64 (N,), on any device. If there are fewer images than `count`, all.
    """
    n, labels = len(labels), labels.cpu()
    if (labels[1:] != labels[:-1]).sum() >= len(labels.unique()):
        return torch.arange(min(count, n))
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    of_class = labels[shuffled]
    by_class = of_class.argsort(stable=True)
    counts = torch.bincount(of_class)
    turn = torch.empty(n, dtype=torch.int64)  # each image's number within its class, in shuffled order
    turn[by_class] = torch.arange(n) - (counts.cumsum(0) - counts)[of_class[by_class]]
    return shuffled[turn.argsort(stable=True)[:count]].sort().values


def was_drawn_otherwise(labels: Tensor, val_size: int) -> bool:
    """Whether cifarctl before 0.2 drew another validation set: it could take the last image of a class."""
    counts = torch.bincount(labels)
    return bool(((_proportional(counts, val_size) >= counts) & (counts > 0)).any())


def _proportional(counts: Tensor, val_size: int) -> Tensor:
    """How many of `val_size` images each class gives, int64 (classes,), by the sizes of the classes, `counts`."""
    exact = counts * val_size / counts.sum()
    quota = exact.floor().long()
    # The classes with the largest remainders get one more each, until the sizes add up.
    quota[(exact - quota).argsort(descending=True, stable=True)[: val_size - int(quota.sum())]] += 1
    return quota
