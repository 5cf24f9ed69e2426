"""Put a finished run's model into the package, at half its size.

    python .github/ship_pretrained.py RUN COMMIT

COMMIT is the one that the run was trained on. Filters and matrices are stored as fp16, and the model is measured again
as it is stored: its metadata says what it is, not what it was.
Data is read from where `cifarctl` finds it.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from cifarctl import weights
from cifarctl.data import Source
from cifarctl.evaluation import evaluate_autoencoder, evaluate_classifier

LIMIT = 10_000_000


def main(run: Path, commit: str) -> None:
    source_path = weights.resolve(run, "classifier")
    info = weights.read_info(source_path)
    path = Path(__file__).parent.parent / "cifarctl" / "pretrained" / f"{info.kind}.safetensors"
    path.parent.mkdir(exist_ok=True)
    info = replace(info, training={**info.training, "commit": commit})
    device = torch.device("cpu")
    model = (
        weights.load_classifier(source_path, device)[0]
        if info.kind == "classifier"
        else weights.load_autoencoder(source_path, device)[0]
    )
    # Norms' statistics span more than fp16 holds, and weigh nothing.
    tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in model.state_dict().items()}
    weights.save(path, tensors, info)

    source = Source.trained_on(info.data, None, None)
    test = source.load("test")
    if info.kind == "classifier":
        classifier, _ = weights.load_classifier(path, device)
        report = evaluate_classifier(classifier, test)
        measured = {
            **report.metrics,
            "tta_accuracy": evaluate_classifier(classifier, test, tta=True).metrics["accuracy"],
        }
    else:
        autoencoder, _ = weights.load_autoencoder(path, device)
        measured = {**evaluate_autoencoder(autoencoder, test, source.load("train").images).metrics}
    weights.save(path, tensors, replace(info, metrics={**info.metrics, "test": {"n": len(test), **measured}}))
    size = path.stat().st_size
    assert size <= LIMIT, f"{path}: {size:,} bytes"
    print(f"{path}: {size:,} bytes", info.training, measured, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
