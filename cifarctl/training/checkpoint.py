"""Write the whole state of a training run to one safetensors file, and read it.

It holds no random generator's state: every step seeds the generator from (seed, step), so the step's number is enough.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cifarctl.data.fingerprint import describe_changes
from cifarctl.errors import RunDirError
from cifarctl.files import save_tensors

Record = dict[str, float | int]
"""One epoch's line in `metrics.jsonl`."""


@dataclass
class TrainingState:
    """What changes during a run, without the model and the optimizer.

    step: optimizer steps done. loss_sum: the sum of the losses of the current epoch's steps, a scalar. seconds: time
    spent in training. history: a record per epoch.
    best_epoch: the best epoch so far, counting from 1; best: its weights; best_metric: its validation metric.
    ema: the moving average of the weights; empty if the recipe has none.
    scaler: the state of the gradient scaler; empty unless precision is fp16.
    """

    step: int = 0
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    seconds: float = 0.0
    history: list[Record] = field(default_factory=list)
    best_metric: float = float("-inf")
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    ema: dict[str, Tensor] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: Path,
    state: TrainingState,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Replace the checkpoint at `path`, atomically. data: the description of the run's data. Raises OSError."""
    tensors = {"loss_sum": state.loss_sum}
    for group, group_tensors in (("model", model.state_dict()), ("best", state.best), ("ema", state.ema)):
        tensors |= {f"{group}.{name}": tensor for name, tensor in group_tensors.items()}
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in entries.items()}
    position = {
        "step": state.step,
        "seconds": state.seconds,
        "history": state.history,
        "best_metric": state.best_metric if state.history else None,
        "best_epoch": state.best_epoch,
        "scaler": state.scaler,
        "data": dict(data or {}),
    }
    save_tensors(path, tensors, {"format": "1", "position": json.dumps(position)})


def load_checkpoint(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    data: Mapping[str, Any] | None = None,
) -> TrainingState:
    """Load the checkpoint at `path` into `model` and `optimizer`, and return the rest.

    Raises RunDirError if the file is damaged, or belongs to another model or to other data than `data` describes.
    """
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "ema": {}, "optimizer": {}}
    try:
        with safe_open(path, framework="pt") as file:
            position: dict[str, Any] = json.loads((file.metadata() or {})["position"])
            loss_sum = file.get_tensor("loss_sum").to(device)
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                group, _, rest = name.partition(".")
                if rest:
                    groups[group][rest] = file.get_tensor(name).to(device)
        model.load_state_dict(groups["model"])
        _load_optimizer(optimizer, groups["optimizer"])
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise RunDirError(
            f"{path}: cannot resume from it ({str(error).splitlines()[0]})", hint="start anew with --overwrite"
        ) from None
    if data and (changes := describe_changes(position.get("data") or {}, data, ("train", "test"))):
        raise RunDirError(
            f"{path}: belongs to a run on other data: {'; '.join(changes)}", hint="--overwrite starts anew"
        )
    return TrainingState(
        step=position["step"],
        # Copies: these tensors are a view of the file, which the next checkpoint replaces.
        loss_sum=loss_sum.clone(),
        seconds=position["seconds"],
        history=position["history"],
        best_metric=float("-inf") if position["best_metric"] is None else position["best_metric"],
        best={name: tensor.clone() for name, tensor in groups["best"].items()},
        ema={name: tensor.clone() for name, tensor in groups["ema"].items()},
        best_epoch=position["best_epoch"],
        scaler=position["scaler"],
    )


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        # In the parameter's memory layout, since sums in another order give other bits.
        value = torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor.clone()
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
