"""Objectives: the losses that autoencoders and classifiers minimise, and the metrics they report after each epoch."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarctl.data import Dataset
from cifarctl.data.dataset import to_float
from cifarctl.distributed import ALONE, Ranks
from cifarctl.hardware import Precision
from cifarctl.inference import classify_features, compute_features, predict_logits, reconstruct
from cifarctl.model_outputs import psnr
from cifarctl.models.base import Autoencoder, Classifier
from cifarctl.training.augment import augment_images, flip, mix_examples, random_crop, scale
from cifarctl.training.recipes import Recipe


class Objective(Protocol):
    """The part of a training run that depends on the task.

    metric: which of the metrics that `validate` returns is maximised: the epoch with the greatest value is kept.
    encodes_first: True if `inputs` runs an autoencoder on all images. That may take minutes, so the user is told.

    On one GPU, unless precision is fp16, training steps are recorded as CUDA graphs and replayed
    (`cuda_graph.CapturedStep`). A replay runs the recorded kernels on the recorded addresses, and no Python. So
    `augment`, `loss` and the model that they call must keep to these rules:

    - Never wait for the GPU or copy from the CPU: no `.item()`, `.tolist()`, `.cpu()`, `print(tensor)`, `if tensor:`,
      boolean indexing, `nonzero`, or `torch.tensor(number, device=…)`. Shapes must not depend on values.
    - Python may decide only what stays the same between two of the recipe's `phase_boundaries`: all steps between them
      replay the recorded `progress`. What changes at every step must be a tensor, as `epoch` is here. If a model has
      several kinds of steps, its `draw_variant` draws the next one's, and each kind is recorded by itself.
    - Python with an effect outside of the step, such as counting steps, runs at the first three steps of a kind only.
    - Random numbers come from torch's default generator of the device: not from NumPy, `random` or another generator.
    - Tensors from outside the step must outlive it and be changed in place: parameters, buffers, and attributes made
      before the first step. A replay does not see that an attribute was assigned a new tensor. Nor may a tensor made
      inside a step be kept: the next replay overwrites it.
    """

    metric: str
    encodes_first: bool

    def inputs(self, images: Tensor) -> Tensor:
        """All training images, uint8 (N, 3, 32, 32) -> what batches are drawn from, (N, …), on the same device."""
        ...

    def augment(
        self, batch: Tensor, labels: Tensor, indices: Tensor, epoch: int | Tensor, progress: float
    ) -> tuple[Tensor, Tensor]:
        """Rows of `inputs` and labels, int64 (B,), at `indices`, int64 (B,) -> the model's input for this step, and
        what `loss` compares its output with. progress: the fraction of all steps that is done, in [0, 1). Between two
        of the recipe's `phase_boundaries`, it must make no difference.
        """
        ...

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """The batch's mean loss, a scalar."""
        ...

    def validate(self, data: Dataset, precision: Precision, ranks: Ranks = ALONE) -> dict[str, float]:
        """Metrics on the whole of `data`, by name; `loss` among them. Several `ranks` share the images."""
        ...


class _OnImages:
    """Base of the objectives whose inputs are images, augmented at every step."""

    encodes_first = False

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe, self.seed = recipe, seed

    def inputs(self, images: Tensor) -> Tensor:
        return images

    def augment(
        self, batch: Tensor, labels: Tensor, indices: Tensor, epoch: int | Tensor, progress: float
    ) -> tuple[Tensor, Tensor]:
        images = augment_images(batch, indices, epoch, self.recipe, self.seed)
        images, targets = self.targets(images, labels)
        side = next((side for until, side in self.recipe.image_sizes if progress < until), images.shape[-1])
        return scale(images, side), targets

    def targets(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Augmented images, float (B, 3, 32, 32) -> the images to train on, and what their outputs should be."""
        return images, labels


class Reconstruction(_OnImages):
    """Mean squared error of pixels in [0, 1]; reports PSNR of the mean error, in dB."""

    metric = "psnr"

    def __init__(self, model: Autoencoder, recipe: Recipe, seed: int) -> None:
        super().__init__(recipe, seed)
        self.model = model

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002 (the images are their own targets)
        return F.mse_loss(self.model(x).float(), x)

    def validate(self, data: Dataset, precision: Precision, ranks: Ranks = ALONE) -> dict[str, float]:
        error = reconstruct(self.model, data.images, precision=precision, ranks=ranks) - to_float(data.images)
        mse = error.square().mean().item()
        return {"loss": mse, "psnr": psnr(mse).item()}


def balanced_weights(data: Dataset) -> Tensor:
    """Weights with which all classes count the same in a loss: N / (classes · images of the class), float (classes,).
    Their mean over the images of `data` is 1.

    Source: King and Zeng, "Logistic Regression in Rare Events Data", 2001.
    """
    counts = data.labels.bincount(minlength=len(data.classes))
    return len(data) / ((counts > 0).sum() * counts.clamp_min(1))


class Classification(_OnImages):
    """Cross-entropy with label smoothing; reports accuracy.

    class_weights: the weight of each class's images in the loss, float (classes,); None is 1 for all. `validate` uses
    none. teacher: a trained classifier of the same classes; its probabilities for the augmented images are the targets,
    instead of the labels. Source: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent",
    2022.
    """

    metric = "accuracy"

    def __init__(
        self,
        model: Classifier,
        recipe: Recipe,
        seed: int,
        class_weights: Tensor | None = None,
        teacher: Classifier | None = None,
    ) -> None:
        super().__init__(recipe, seed)
        self.model, self.class_weights, self.teacher = model, class_weights, teacher

    def targets(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The targets are int64 (B,), or float (B, classes) if images are mixed or there is a teacher."""
        images, labels = mix_examples(images, labels, self.model.classes, self.recipe)
        if self.teacher is not None:
            with torch.no_grad():
                logits = self.teacher.classify(self.teacher.features(images)).float()
                labels = (logits / self.recipe.teacher_temperature).softmax(1)
        return images, labels

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        return self.cross_entropy(self.model(x), targets)

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of logits, float (B, classes), with the recipe's label smoothing and the classes' weights.

        targets: int64 (B,), or probabilities, float (B, classes).
        """
        smoothing, logits = self.recipe.label_smoothing, logits.float()
        if self.teacher is not None:
            temperature = self.recipe.teacher_temperature
            return F.cross_entropy(logits / temperature, targets) * temperature**2
        if self.class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        # Not the function's own `weight`: it divides by the sum of the batch's weights, so rare classes would count too
        # little, and the result would depend on the number of processes.
        losses = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
        weights = targets @ self.class_weights if targets.is_floating_point() else self.class_weights[targets]
        return (losses * weights).mean()

    def validate(self, data: Dataset, precision: Precision, ranks: Ranks = ALONE) -> dict[str, float]:
        logits = self.logits(data, precision, ranks)
        correct = int((logits.argmax(1) == data.labels).sum())
        return {"loss": F.cross_entropy(logits, data.labels).item(), "accuracy": correct / len(data)}

    def logits(self, data: Dataset, precision: Precision, ranks: Ranks) -> Tensor:
        """The model's logits of all of `data`, float32 (N, classes)."""
        return predict_logits(self.model, data.images, precision=precision, ranks=ranks)


class _Frozen(Classification):
    """Classification of a frozen autoencoder's output, which is computed once: only the layers after it are trained."""

    encodes_first = True

    def __init__(
        self, model: Classifier, recipe: Recipe, seed: int, precision: Precision, class_weights: Tensor | None = None
    ) -> None:
        super().__init__(model, recipe, seed, class_weights)
        self.precision = precision
        self.cached_features: tuple[Dataset, Tensor] | None = None

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        return self.cross_entropy(self.model.classify(x), targets)

    def logits(self, data: Dataset, precision: Precision, ranks: Ranks) -> Tensor:
        """Computes the features of `data` once: they are the same in every epoch, and take longer than the rest."""
        if self.cached_features is None or self.cached_features[0] is not data:
            self.cached_features = data, compute_features(self.model, data.images, precision=precision, ranks=ranks)
        return classify_features(self.model, self.cached_features[1], precision=precision, ranks=ranks)


class FrozenLatents(_Frozen):
    """Classification of latents by fully connected layers.

    Images are augmented before the encoder: `VIEWS` augmented copies of every image are encoded at the start, and each
    step draws one of them per image. Half of the copies are mirrored.
    """

    VIEWS = 4

    def inputs(self, images: Tensor) -> Tensor:
        """-> float32 (N, VIEWS, D)."""
        copies = []
        for view in range(self.VIEWS):
            augmented = flip(images, torch.full((len(images),), view % 2 == 1, device=images.device))
            if self.recipe.crop and view > 1:  # two stay unshifted, as images are when the classifier is used
                augmented = torch.cat([random_crop(chunk, self.recipe.crop) for chunk in augmented.split(5000)])
            copies.append(compute_features(self.model, augmented, precision=self.precision))
        return torch.stack(copies, dim=1)

    def augment(
        self,
        batch: Tensor,
        labels: Tensor,
        indices: Tensor,  # noqa: ARG002
        epoch: int | Tensor,  # noqa: ARG002
        progress: float,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        view = torch.randint(batch.shape[1], (len(batch),), device=batch.device)
        return batch[torch.arange(len(batch), device=batch.device), view], labels


class FrozenPictures(_Frozen):
    """Classification by convolutions of the pictures that a frozen autoencoder decodes from its latents. They are
    computed once, rounded to uint8, and augmented like images.
    """

    def inputs(self, images: Tensor) -> Tensor:
        """-> uint8 (N, 3, 32, 32)."""
        chunks = (compute_features(self.model, chunk, precision=self.precision) for chunk in images.split(5000))
        return torch.cat([chunk.mul_(255).round_().byte() for chunk in chunks])


class ThawingPictures(FrozenPictures):
    """The same until the recipe's `thaw`; after that, the autoencoder is trained as well, and each step decodes its
    pictures anew.
    """

    thawed = False

    def inputs(self, images: Tensor) -> Tensor:
        self.images = images
        return super().inputs(images)

    def augment(
        self, batch: Tensor, labels: Tensor, indices: Tensor, epoch: int | Tensor, progress: float
    ) -> tuple[Tensor, Tensor]:
        if progress >= self.recipe.thaw:
            batch = self.model.features(self.images[indices])
            self.thawed = True
        return super().augment(batch, labels, indices, epoch, progress)

    def logits(self, data: Dataset, precision: Precision, ranks: Ranks) -> Tensor:
        if self.thawed:
            self.cached_features = None  # the autoencoder has changed since
        return super().logits(data, precision, ranks)
