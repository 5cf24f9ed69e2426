"""All values that training uses, by architecture and name of the recipe. Any field can be overridden."""

import math
from collections.abc import Set
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

ClassWeights = Literal["none", "balanced"]

# The fields with an option of their own on the command line; --set takes the others.
WITH_OPTIONS = frozenset({"epochs", "batch_size", "lr", "weight_decay", "label_smoothing", "class_weights", "ema"})

Count = Annotated[int, "above 0"]
Pixels = Annotated[int, "pixels"]
Fraction = Annotated[float, "from 0 to 1"]


@dataclass(frozen=True)
class UsedFor:
    """Which trainings use a field of the recipe; all do if it has no `UsedFor`.

    images: those whose batches are images, and not latents that are computed once.
    """

    task: Literal["fine-tuning", "teacher", "labels", "images", "labelled images", "convolutions", "decay"]


def unused_fields(tasks: Set[str]) -> set[str]:
    """The fields of a recipe that a training with these tasks, as in `UsedFor`, does not use."""
    uses = {name: get_args(hint)[1:] for name, hint in get_type_hints(Recipe, include_extras=True).items()}
    return {name for name, use in uses.items() for item in use if isinstance(item, UsedFor) and item.task not in tasks}


def _problem(value: Any, hint: Any) -> str | None:
    """What is wrong with the value of a field, as the end of a sentence."""
    hint, *extras = (hint.__origin__, *hint.__metadata__) if get_origin(hint) is Annotated else (hint,)
    if get_origin(hint) is Literal and value not in get_args(hint):
        return f", not one of: {', '.join(get_args(hint))}"
    if hint is int and (type(value) is not int or value < ("above 0" in extras)):
        return f", not a whole number {'above 0' if 'above 0' in extras else 'from 0'}"
    if "pixels" in extras and value > 31:
        return ", more than the 31 pixels that an image can be shifted or covered by"
    if hint is float and (type(value) not in (int, float) or not 0 <= value < math.inf):
        return ", not a number from 0"
    if "from 0 to 1" in extras and value > 1:
        return ", not from 0 to 1"
    if hint == dict[str, float] and not _are_fractions(value):
        return ", not a JSON object of parameters and fractions of the steps"
    if hint == dict[str, Any] and not isinstance(value, dict):
        return ": its fields are set one by one, as model.NAME"
    return None


def _are_fractions(value: Any) -> bool:
    return isinstance(value, dict) and all(type(item) in (int, float) and 0 <= item <= 1 for item in value.values())


def _are_image_sizes(value: Any) -> bool:
    pairs = value if isinstance(value, list | tuple) else (None,)
    return all(
        isinstance(pair, list | tuple)
        and [type(item) in (int, float) for item in pair] == [True, True]
        and 0 <= pair[0] <= 1
        and pair[1] in range(16, 33)
        for pair in pairs
    )


@dataclass(frozen=True)
class Recipe:
    """How to train a model.

    epochs: passes over the training split. batch_size: images per step.
    optimizer: "airbench" (Muon for convolutions that a norm follows, SGD for the rest), "muon" or "adamw".
    lr: peak learning rate, of the convolutions under airbench. weight_decay: decoupled; a step at the peak rate shrinks
        a weight by lr · weight_decay of itself under AdamW, by weight_decay under airbench's SGD. Muon has none.
    encoder_lr: peak learning rate of the autoencoder that a classifier fine-tunes. thaw: the fraction of all steps
        after which it is trained too.
    warmup: the fraction of all steps in which the rate rises from zero. schedule: how it falls to zero after that.
    label_smoothing: of the cross-entropy; autoencoders ignore it. class_weights: "balanced" makes all classes count the
        same in it, however many images they have.
    flip: left-right mirroring. crop: shift by at most this many pixels. cutout: side of a grey square; 0 is none.
    affine: the fraction of the images that are zoomed, turned and sheared. jitter: how far brightness, contrast and
        saturation vary, as a fraction of themselves.
    mixup: the fraction of the images that are blended with another. cutmix: the fraction that get a rectangle of
        another.
    teacher_temperature: what the logits of a teacher, and those that learn from it, are divided by.
    ema: decay of the moving average of the weights that is validated and kept; 0 is none.
    keep: the weights of which epoch: the best by the validation metric, or the last.
    norms: by what a batch norm standardises in training: the batch's statistics, which it also notes, or those stored.
    epoch_steps: an epoch has at least this many steps; it passes over few images several times.
    image_sizes: (until, pixels) pairs: images are scaled to `pixels` × `pixels` while the fraction of steps that are
        done is below `until`.
    trained_until: by parameter, the fraction of all steps after which it stays as it is.
    model: arguments of the model's class.
    """

    epochs: Count
    batch_size: Count
    optimizer: Literal["airbench", "muon", "adamw"]
    lr: float
    weight_decay: Annotated[float, UsedFor("decay")]
    encoder_lr: Annotated[float, UsedFor("fine-tuning")] = 0.0
    thaw: Annotated[Fraction, UsedFor("fine-tuning")] = 0.0
    warmup: Fraction = 0.0
    schedule: Literal["linear", "cosine"] = "linear"
    label_smoothing: Annotated[Fraction, UsedFor("labels")] = 0.0
    class_weights: Annotated[ClassWeights, UsedFor("labels")] = "none"
    flip: Annotated[Literal["none", "random", "alternating"], UsedFor("images")] = "none"
    crop: Pixels = 0
    cutout: Annotated[Pixels, UsedFor("images")] = 0
    affine: Annotated[Fraction, UsedFor("images")] = 0.0
    jitter: Annotated[Fraction, UsedFor("images")] = 0.0
    mixup: Annotated[Fraction, UsedFor("labelled images")] = 0.0
    cutmix: Annotated[Fraction, UsedFor("labelled images")] = 0.0
    teacher_temperature: Annotated[float, UsedFor("teacher")] = 1.4
    ema: Fraction = 0.0
    keep: Literal["best", "last"] = "best"
    norms: Literal["batch", "stored"] = "batch"
    epoch_steps: Count = 1
    image_sizes: Annotated[tuple[tuple[float, int], ...], UsedFor("convolutions")] = ()
    trained_until: dict[str, float] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError on a value that training does not know, since it would silently train something else."""
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            if problem := _problem(getattr(self, name), hint):
                raise ValueError(f"{name} is {getattr(self, name)!r}{problem}")
        if not _are_image_sizes(self.image_sizes):
            raise ValueError(
                f"image_sizes is {self.image_sizes!r}, not pairs of a fraction of the steps and 16 to 32 pixels"
            )
        if list(self.image_sizes) != sorted(self.image_sizes, key=lambda pair: pair[0]):
            raise ValueError(f"image_sizes is {self.image_sizes!r}: its fractions of the steps must rise")
        for name, most in (("label_smoothing", 0.99), ("ema", 0.99999)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name)}, more than {most}")
        if not self.teacher_temperature:
            raise ValueError("teacher_temperature is 0, and logits are divided by it")
        if self.mixup + self.cutmix > 1:
            raise ValueError(f"mixup and cutmix are {self.mixup} and {self.cutmix}, more than 1 together")

    def changed(self, overrides: dict[str, Any]) -> "Recipe":
        """A copy with other values; those of `model` are changed one by one. Raises ValueError on unknown fields."""
        known = [item.name for item in fields(self)]
        if unknown := [name for name in overrides if name not in known]:
            raise ValueError(f"there is no {unknown[0] or 'empty name'}, only: {', '.join(known)}")
        model = overrides.get("model", {})
        return replace(self, **{**overrides, "model": {**self.model, **model} if isinstance(model, dict) else model})

    @property
    def phase_boundaries(self) -> list[float]:
        """The fractions of all steps at which training enters another phase, in order: other layers or image sizes."""
        return sorted({self.thaw, *(until for until, _ in self.image_sizes), *self.trained_until.values()})


# For an architecture without recipes of its own: nothing here depends on how a model is built.
PLAIN = Recipe(
    epochs=20,
    batch_size=128,
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.05,
    encoder_lr=1e-4,
    warmup=0.1,
    schedule="cosine",
    label_smoothing=0.1,
    flip="random",
    crop=2,
)

_RESCONV: dict[str, Recipe] = {
    "fast": Recipe(
        # Twice as many epochs gain only 0.1 dB at 256 floats.
        epochs=4,
        batch_size=128,
        optimizer="muon",
        lr=0.02,
        weight_decay=0.0,
        warmup=0.15,
        schedule="cosine",
        flip="random",
    ),
    "best": Recipe(
        epochs=60,
        batch_size=1024,
        optimizer="muon",
        lr=0.02,
        weight_decay=0.0,
        warmup=0.15,
        schedule="cosine",
        flip="random",
        crop=2,
        model={"width": 256, "blocks": 6},
    ),
}

# Small images first: the net learns coarse shapes at half the cost per step, and the time pays for more epochs.
_AIRBENCH: dict[str, Recipe] = {
    "fast": Recipe(
        epochs=9,
        batch_size=512,
        optimizer="airbench",
        lr=0.12,
        weight_decay=1e-3,
        label_smoothing=0.2,
        flip="alternating",
        crop=2,
        image_sizes=((0.6, 24),),
        trained_until={"whiten.bias": 1 / 3},
        model={"depth": (2, 3, 3), "whiten_bias": True, "pool": "max+mean"},
    ),
    "best": Recipe(
        epochs=44,
        batch_size=512,
        optimizer="airbench",
        lr=0.09,
        weight_decay=1e-3,
        label_smoothing=0.2,
        flip="alternating",
        crop=4,
        cutout=12,
        affine=0.5,
        jitter=0.2,
        image_sizes=((0.5, 24),),
        trained_until={"whiten.bias": 1 / 3},
        model={"widths": (96, 288, 320), "depth": 3, "whiten_bias": True, "pool": "max+mean"},
    ),
}
_AIRBENCH["max"] = replace(
    _AIRBENCH["best"],
    epochs=160,
    batch_size=1024,
    lr=0.12,
    label_smoothing=0.1,
    cutout=6,
    jitter=0.4,
    mixup=0.2,
    cutmix=0.5,
    ema=0.999,
    model={**_AIRBENCH["best"].model, "widths": (192, 576, 768)},
)

# For recipes that are meant for a GPU: on 48,000 images, on two EPYC cores with AVX512-BF16.
CPU_HOURS_PER_EPOCH = {("airbench", "max"): 0.09, ("resconv", "best"): 0.05}

_MLP = Recipe(
    epochs=30,
    batch_size=512,
    optimizer="adamw",
    lr=2e-3,
    weight_decay=0.05,
    encoder_lr=1e-4,
    warmup=0.1,
    schedule="cosine",
    label_smoothing=0.1,
    flip="random",
    crop=2,
)

_AIRBENCH_FINE_TUNING = Recipe(
    epochs=24,
    batch_size=512,
    optimizer="airbench",
    lr=0.12,
    weight_decay=1e-3,
    encoder_lr=1e-3,
    thaw=0.9,
    label_smoothing=0.2,
    flip="alternating",
    crop=4,
    cutout=8,
    affine=0.5,
    image_sizes=((0.5, 24),),
    model={"widths": (96, 288, 320), "depth": 3},
)

DEFAULT_RECIPE = "fast"
# By architecture, then by name.
RECIPES: dict[str, dict[str, Recipe]] = {
    "resconv": _RESCONV,
    "conv2": {"fast": _RESCONV["fast"]},
    "airbench": _AIRBENCH,
    "mlp": {"fast": _MLP},
}
# Replaces an architecture's "fast" if it classifies from a frozen autoencoder's latents. Nobody has tried the newer
# values of "fast" there.
FROZEN_ENCODER = {"airbench": replace(_AIRBENCH["fast"], trained_until={}, model={})}
# Replaces "fast" if it fine-tunes an autoencoder. Until `thaw` the autoencoder stays frozen, since the gradients of
# untrained layers would distort it (Kumar et al., "Fine-tuning can distort pretrained features and underperform
# out-of-distribution", 2022, arXiv:2202.10054).
FINE_TUNED_ENCODER = {"airbench": _AIRBENCH_FINE_TUNING}
# Replaces an architecture's "fast" if training starts from trained weights (`init`). The rate of new weights would
# destroy them. 60 images are one batch, and a few passes over them train nothing, so an epoch has a least number of
# steps. A few images for validation cannot tell which epoch is best, so the last one is kept.
_GENTLE = Recipe(
    epochs=5,
    batch_size=512,
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.0,
    warmup=0.1,
    schedule="cosine",
    label_smoothing=0.1,
    flip="random",
    crop=4,
    jitter=0.2,
    keep="last",
    norms="stored",
    epoch_steps=12,
)
_GENTLE_RESCONV = replace(_RESCONV["fast"], lr=0.005, epoch_steps=20)
TRAINED_WEIGHTS = {
    "airbench": _GENTLE,
    "mlp": _GENTLE,
    "resconv": _GENTLE_RESCONV,
    "conv2": _GENTLE_RESCONV,
}


def names(architecture: str) -> list[str]:
    """The names of an architecture's recipes, the default first."""
    return list(_recipes(architecture))


Start = Literal["new", "frozen encoder", "fine-tuned encoder", "trained"]
"""What a training starts from: new weights, perhaps after an encoder that is frozen or trained too, or trained ones."""


def recipe_for(architecture: str, name: str, start: Start = "new") -> Recipe:
    """An architecture's recipe; `PLAIN` for one that has none. Raises ValueError on an unknown name."""
    if name not in (known := _recipes(architecture)):
        raise ValueError(f"{architecture} has no recipe {name}, only: {', '.join(known)}")
    recipe = known[name]
    if name == DEFAULT_RECIPE:
        instead = {
            "frozen encoder": FROZEN_ENCODER,
            "fine-tuned encoder": FINE_TUNED_ENCODER,
            "trained": TRAINED_WEIGHTS,
        }
        recipe = instead.get(start, {}).get(architecture, _GENTLE if start == "trained" else recipe)
    if start == "fine-tuned encoder" and not recipe.encoder_lr:
        raise ValueError(f"{architecture}'s recipe {name} has no rate to fine-tune an autoencoder with")
    return recipe


def _recipes(architecture: str) -> dict[str, Recipe]:
    return RECIPES.get(architecture, {"fast": PLAIN})
