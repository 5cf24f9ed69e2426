"""Write the whole state of a training run to a safetensors file, keep the one before it, and read them.

It holds no random generator's state: every step seeds the generator from (seed, step), so the step's number is enough.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifarctl.data.contents import SPLITS
from cifarctl.data.fingerprint import describe_changes
from cifarctl.errors import RunDirError
from cifarctl.files import to_json
from cifarctl.sealed_file import load_sealed, save_sealed

_FORMAT = "2"
_EARLY_FORMAT = "1"  # of cifarctl 0.2 and before: without a digest, and without what the checkpoint belongs to

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


class Checkpoint:
    """The checkpoint at `path`, and beside it the one before, which is kept in case the newest is damaged.

    belongs_to: what must be equal if a run is to go on from it: names and values, which may be JSON objects of such;
    `data` is what `Source.describe` says.
    """

    def __init__(self, path: Path, belongs_to: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.belongs_to: dict[str, Any] = dict(belongs_to or {})
        self._read: _Contents | None = None

    @property
    def paths(self) -> tuple[Path, Path]:
        """The newest and the one before it."""
        return self.path, self.path.with_name(f"previous-{self.path.name}")

    def exists(self) -> bool:
        """Whether there is one to go on from, damaged or not."""
        return any(path.exists() for path in self.paths)

    def remove(self) -> None:
        """Remove both. Raises OSError."""
        for path in reversed(self.paths):
            path.unlink(missing_ok=True)

    def save(self, state: TrainingState, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Replace the newest, atomically, and keep it as the one before. Raises OSError."""
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
            "data": self.belongs_to.get("data", {}),
            "belongs_to": {name: value for name, value in self.belongs_to.items() if name != "data"},
        }
        newest, previous = self.paths
        save_sealed(newest, tensors, {"format": _FORMAT, "position": to_json(position)}, keep_as=previous)

    def read(self) -> list[str]:
        """Read the newest, or the one before if that is damaged, for `load`. Returns what the user should know of it.

        Raises RunDirError if both are damaged, or if it belongs to another run.
        """
        damaged: dict[Path, str] = {}
        for path in self.paths:
            try:
                contents = _read(path)
            except (OSError, ValueError) as error:
                if not isinstance(error, FileNotFoundError):
                    damaged[path] = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
                continue
            self._check_belonging(path, contents.position)
            self._read = contents
            remarks = [f"{each}: damaged ({reason})" for each, reason in damaged.items()]
            if path != self.path:
                remarks = remarks or [f"{self.path}: missing"]
                remarks[-1] += f"; going on from the one before it, after step {contents.position['step']}"
            if not contents.has_digest:
                remarks.append(
                    f"{path}: of an earlier version, without a digest, so it cannot be told whether it is damaged or "
                    "of another run"
                )
            return remarks
        reasons = [f"{path.name}: {reason}" if len(damaged) > 1 else reason for path, reason in damaged.items()]
        first = next(iter(damaged), self.path)
        raise RunDirError(
            f"{first}: cannot resume from it ({'; '.join(reasons) or 'it is missing'})",
            hint="start anew with `overwrite`",
        )

    def load(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> TrainingState:
        """Put what was read, or is read now, into `model` and `optimizer`, and return the rest.

        Raises RunDirError as `read`, and if it belongs to another model.
        """
        if self._read is None:
            self.read()
        assert self._read is not None
        contents, self._read = self._read, None
        position = contents.position
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "ema": {}, "optimizer": {}}
        try:
            for name, tensor in contents.tensors.items():
                group, _, rest = name.partition(".")
                if rest:
                    groups[group][rest] = tensor.to(device)
            model.load_state_dict(groups["model"])
            for group in ("best", "ema"):
                if groups[group] and groups[group].keys() != groups["model"].keys():
                    raise ValueError(f"the tensors of {group} are not those of the model")
            if self.belongs_to.get("recipe", {}).get("ema") and not groups["ema"]:
                raise ValueError("the averaged weights are missing")
            if position["step"] and not groups["optimizer"]:
                raise ValueError("the optimizer's tensors are missing")
            _load_optimizer(optimizer, groups["optimizer"])
            return TrainingState(
                step=position["step"],
                loss_sum=contents.tensors["loss_sum"].to(device),
                seconds=position["seconds"],
                history=position["history"],
                best_metric=float("-inf") if position["best_metric"] is None else position["best_metric"],
                best=groups["best"],
                ema=groups["ema"],
                best_epoch=position["best_epoch"],
                scaler=position["scaler"],
            )
        except (KeyError, ValueError, RuntimeError, IndexError, TypeError) as error:
            raise RunDirError(
                f"{contents.path}: cannot resume from it ({str(error).splitlines()[0]})",
                hint="start anew with `overwrite`",
            ) from None

    def _check_belonging(self, path: Path, position: Mapping[str, Any]) -> None:
        data = self.belongs_to.get("data")
        if data and (changes := describe_changes(position.get("data") or {}, data, SPLITS)):
            raise RunDirError(
                f"{path}: belongs to a run on other data: {'; '.join(changes)}", hint="`overwrite` starts anew"
            )
        now = {name: value for name, value in self.belongs_to.items() if name != "data"}
        differences = describe_differences(position.get("belongs_to") or {}, now)
        if differences:
            # The runs' ids say something only if nothing else differs.
            named = [text for text in differences if not text.startswith("run is ")] or differences
            raise RunDirError(
                f"{path}: belongs to another run: {'; '.join(named)}",
                hint="bring the run's own checkpoint back, or start anew with `overwrite`",
            )


@dataclass(frozen=True)
class _Contents:
    path: Path
    tensors: dict[str, Tensor]
    position: dict[str, Any]
    has_digest: bool


def _read(path: Path) -> _Contents:
    """Raises OSError, ValueError if the file is damaged, RunDirError if it is of another version."""
    tensors, metadata, has_digest = load_sealed(path)
    found = metadata.get("format", "none")
    if found not in (_EARLY_FORMAT, _FORMAT):
        raise RunDirError(
            f"{path}: a checkpoint of format {found[:20]!r}, which this version does not know",
            hint="resume with the version that wrote it, or start anew with `overwrite`",
        )
    if found == _FORMAT and not has_digest:
        raise ValueError("its SHA-256 is missing")
    try:
        position = json.loads(metadata["position"])
        step = position["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("its position cannot be read") from None
    if type(step) is not int or step < 0:
        raise ValueError(f"its step is {step!r}")
    return _Contents(path, tensors, position, has_digest)


def describe_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which values differ, in words, by names such as `recipe.lr`. What only one of them names is not compared: another
    version wrote it.
    """
    differences = []
    for name in [name for name in now if name in then]:
        before, after = (json.loads(json.dumps(each[name])) for each in (then, now))
        if name == "recipe" and isinstance(before, dict) and isinstance(after, dict):
            differences += [f"{name}.{text}" for text in describe_differences(before, after)]
        elif before != after:
            differences.append(f"{name} is {before}, not {after}")
    return differences


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
