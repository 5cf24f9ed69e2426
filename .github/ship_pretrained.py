"""Put a finished run's model into the package, at half its size.

    python .github/ship_pretrained.py RUN COMMIT

COMMIT is the one that the run was trained on. Filters and matrices are stored as fp16, and the model is calibrated and
measured again as it is stored: its metadata says what it is, not what it was.
Data is read from where `cifarctl` finds it.
"""

import sys
from dataclasses import replace
from pathlib import Path

import cifarctl
from cifarctl import weights
from cifarctl.data import Source
from cifarctl.files import PRETRAINED
from cifarctl.training.calibration import calibrate

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
        calibrate(shipped.module, Source.trained_on(info.data, None, None).load("val"), "fp32")
        tensors |= {name: shipped.module.state_dict()[name] for name in ("temperature", "smoothing")}
    report = cifarctl.evaluate(shipped)
    measured = {"n": report.n, **report.metrics}
    if isinstance(shipped, cifarctl.LoadedClassifier):
        with_views = cifarctl.evaluate(shipped, tta=True).metrics
        measured |= {f"tta_{name}": with_views[name] for name in ("accuracy", "nll", "ece")}
    weights.save(path, tensors, replace(info, metrics={**info.metrics, "test": measured}))
    size = path.stat().st_size
    assert size <= LIMIT, f"{path}: {size:,} bytes"
    print(f"{path}: {size:,} bytes", info.training, measured, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
