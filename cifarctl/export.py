"""Models for other runtimes: ONNX, or PyTorch's own exported program. Plain operators alone, and any batch size."""

import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from cifarctl.errors import UsageError
from cifarctl.files import atomic_path
from cifarctl.models.base import Model
from cifarctl.weights import ModelInfo

_NEEDED = ("onnx", "onnxscript")  # by torch.onnx


class _Function(nn.Module):
    """A model's method as a module, which is what can be exported."""

    def __init__(self, model: Model, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def export(
    path: Path,
    model: Model,
    info: ModelInfo,
    function: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    names: tuple[str, str],
) -> None:
    """Write `function` of `model`, float32 (N, *shape) -> float32, to `path`, atomically.

    The suffix says how: `.onnx`, whose metadata holds the classes, or `.pt2`, which `torch.export.load` reads. names:
    of the input and of the output. Raises UsageError on another suffix, if a package is missing, or if the model has
    operations that no other runtime has, and OSError.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"{path}: a model is exported to a name that ends in .onnx or .pt2")
    if path.suffix == ".onnx" and (missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]):
        raise UsageError(f"{path}: writing ONNX needs {' and '.join(missing)}", hint="pip install 'cifarctl[onnx]'")
    device = next(model.parameters()).device
    example = torch.zeros(2, *shape, device=device)
    sizes = {0: torch.export.Dim("batch")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of deprecations inside of the exporter
        try:
            program = torch.export.export(
                _Function(model.eval(), function), (example,), dynamic_shapes=(sizes,), strict=False
            )
        except Exception as error:  # of many types, for whatever an exporter does not know
            raise UsageError(f"{path}: {info.model} cannot be exported ({str(error).splitlines()[0]})") from error
        with atomic_path(path) as temporary:
            if path.suffix == ".pt2":
                torch.export.save(program, temporary)
                return
            written = torch.onnx.export(
                program, (example,), dynamo=True, input_names=names[:1], output_names=names[1:], verbose=False
            )
            assert written is not None
            for value in (*written.model.graph.inputs, *written.model.graph.outputs):
                assert value.shape is not None
                value.shape[0] = "batch"  # the exporter calls it s77 or the like
            written.model.metadata_props.update(classes=json.dumps(info.classes), model=info.model)
            written.save(temporary, external_data=False)
