"""Put a finished run's model into the package, at half its size.

    python .github/ship_pretrained.py RUN COMMIT
    python .github/ship_pretrained.py --typicality

The second fits the typicality of the classifier that is already there, and changes nothing else. COMMIT is the one that
the run was trained on. Filters and matrices are stored as fp16, and the model is calibrated and
measured again as it is stored: its metadata says what it is, not what it was.
Data is read from where `cifarctl` finds it.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

import cifarctl
from cifarctl import weights
from cifarctl.data import Source
from cifarctl.files import PRETRAINED
from cifarctl.models.base import Classifier
from cifarctl.training.calibration import calibrate
from cifarctl.training.outliers import fit_typicality

LIMIT = 10_000_000


def main(run: Path, commit: str) -> None:
    model = cifarctl.load(run, device="cpu")
    info = replace(model.info, training={**model.info.training, "commit": commit})
    path = PRETRAINED / f"{info.kind}.safetensors"
    # Norms' statistics span more than fp16 holds, and weigh nothing.
    tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in model.module.state_dict().items()}
    weights.save(path, tensors, info)

    shipped = cifarctl.load(path, device="cpu")
    if isinstance(shipped, cifarctl.LoadedClassifier):
        source = Source.trained_on(info.data, None, None)
        calibrate(shipped.module, source.load("val"), "fp32")
        tensors |= {name: shipped.module.state_dict()[name] for name in ("temperature", "smoothing")}
        tensors |= typicality_of(shipped.module, source)
    report = cifarctl.evaluate(shipped)
    measured = {"n": report.n, **report.metrics}
    if isinstance(shipped, cifarctl.LoadedClassifier):
        with_views = cifarctl.evaluate(shipped, tta=True).metrics
        measured |= {f"tta_{name}": with_views[name] for name in ("accuracy", "nll", "ece")}
    weights.save(path, tensors, replace(info, metrics={**info.metrics, "test": measured}))
    size = path.stat().st_size
    assert size <= LIMIT, f"{path}: {size:,} bytes"
    print(f"{path}: {size:,} bytes", info.training, measured, sep="\n")


def add_typicality() -> None:
    """Fit the score for the classifier that is in the package. Every other tensor and the metadata stay as they are."""
    path = PRETRAINED / "classifier.safetensors"
    module, info = weights.load_classifier(path, torch.device("cpu"))
    stored = load_file(path)
    weights.save(path, stored | typicality_of(module, Source.trained_on(info.data, None, None)), info)
    print(f"{path}: {path.stat().st_size:,} bytes")


def typicality_of(module: Classifier, source: Source) -> dict[str, torch.Tensor]:
    """The tensors of the fitted score."""
    fit_typicality(module, source.load("train"), source.load("val"), "fp32")
    assert module.typicality is not None
    return module.typicality.tensors()


if __name__ == "__main__":
    if sys.argv[1:] == ["--typicality"]:
        add_typicality()
    else:
        main(Path(sys.argv[1]), sys.argv[2])
