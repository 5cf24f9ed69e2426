"""A stand-in for a Mac's GPU: tensors that say they are on mps, and that refuse what PyTorch's mps refuses.

They compute on the CPU. What they refuse comes from PyTorch's own list (`native_functions.yaml`, which its wheel
holds), for the installed version, and from what is known of the lowest one. Limits: speed, memory, rounding, Metal's
own bugs but for one, autocast, and what an operator made of others ("Composite") calls inside are not a Mac's.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

# What cifarctl uses, or has used, and torch 2.7.1 (the wheel for macOS) lacks on mps, whatever the installed one has.
LACKING = frozenset(
    {
        "_linalg_eigh",
        "_linalg_svd",
        "grid_sampler_2d_backward",
        "_upsample_bilinear2d_aa_backward",
    }
)
_DEVICE = torch.device("mps", 0)
_FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm", "tensor")
_to = torch.Tensor.to


class MpsTensor(torch.Tensor):
    """A tensor on the stand-in. held: its values, on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch's manual says

    @staticmethod
    def __new__(cls, held: Tensor) -> "MpsTensor":
        if held.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        with torch.inference_mode(False):  # else views of tensors from outside it could not be made
            tensor = torch.Tensor._make_wrapper_subclass(
                cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
            )
        tensor.held = held
        return tensor

    device = property(lambda self: _DEVICE)  # noqa: ARG005

    def cpu(self) -> Tensor:  # type: ignore[override]
        assert not (self.requires_grad and torch.is_grad_enabled()), "no gradient passes to the CPU here"
        return self.held.detach().clone()

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        layout: dict[str, Any] = {} if memory_format is None else {"memory_format": memory_format}
        if device is not None and device.type == "cpu":
            return _to(self.cpu(), dtype=dtype or self.dtype, **layout)
        return _to(self, dtype=dtype or self.dtype, **layout)

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own has no `cls`
        cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        _check(operator, args, kwargs)
        held_args, held_kwargs = tree_map_only(MpsTensor, lambda tensor: tensor.held, (args, kwargs))
        result = operator(*held_args, **held_kwargs)
        if "out" in kwargs:
            return kwargs["out"]
        if operator._schema.name.endswith("_"):  # in place
            return args[0] if operator._schema.returns else None
        return tree_map_only(Tensor, MpsTensor, result)


def _check(operator: Any, args: Any, kwargs: Any) -> None:
    """Raise what PyTorch raises on a Mac."""
    name = operator._schema.name.removeprefix("aten::")
    full_name = f"{name}.{operator._schema.overload_name}".rstrip(".")
    if full_name in lacking() or name in LACKING:
        raise NotImplementedError(f"The operator 'aten::{full_name}' is not currently implemented for the MPS device.")
    for tensor in tree_leaves((args, kwargs)):
        if isinstance(tensor, torch.Generator):
            raise RuntimeError("Expected a 'mps' device type for generator but found 'cpu'")
        if not isinstance(tensor, Tensor) or isinstance(tensor, MpsTensor):
            continue
        if tensor.ndim and name not in ("copy_", "index", "index_put_", "_index_put_impl_"):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found mps:0 and cpu! ({full_name})")
    # github.com/pytorch/pytorch/issues/195163, on an M1 or M2: sums of more terms run past the end, without a word.
    if name in ("mm", "bmm") and args[0].shape[-1] >= 32767 and min(args[0].shape[-2], args[1].shape[-1]) >= 16:
        raise RuntimeError("MPS: a product of matrices with sums of 32,767 terms or more is wrong")
    # github.com/pytorch/pytorch/issues/175189: wrong by orders of magnitude, without a word, or an error, by macOS.
    if name == "native_batch_norm_backward" and not args[1].is_contiguous():
        raise RuntimeError("MPS: the gradients of a batch norm are wrong unless its input is contiguous")


@functools.cache
def lacking() -> frozenset[str]:
    """The operators, by name and overload, that have kernels for other devices alone."""
    text = (Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml").read_text()
    return without_kernel(text)


def without_kernel(text: str) -> frozenset[str]:
    """The same of any version's list."""
    keys: dict[str, set[str]] = {}
    delegates: dict[str, str] = {}
    for entry in re.split(r"^- func: ", text, flags=re.MULTILINE)[1:]:
        name = entry.partition("(")[0]
        dispatch = re.search(r"^  dispatch:.*\n((?:    .*\n|\s*#.*\n)*)", entry, re.MULTILINE)
        lines = re.findall(r"^    ([\w, ]+):", dispatch[1], re.MULTILINE) if dispatch else []
        keys[name] = {key.strip() for line in lines for key in line.split(",")}
        if delegate := re.search(r"^  structured_delegate: (\S+)", entry, re.MULTILINE):
            delegates[name] = delegate[1]

    def is_there(name: str) -> bool:
        found = keys[name] | keys.get(delegates.get(name, ""), set())
        return not found or any(key == "MPS" or key.startswith("Composite") for key in found)

    return frozenset(name for name in keys if not is_there(name))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process see the stand-in as a Mac's GPU, in all of its threads."""

    def is_mps(device: Any) -> bool:
        return isinstance(device, str | torch.device) and torch.device(device).type == "mps"

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not any(is_mps(value) for value in (*args, *kwargs.values())):
            return _to(self, *args, **kwargs)
        _, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        layout: dict[str, Any] = {} if memory_format is None else {"memory_format": memory_format}
        return MpsTensor(_to(self.detach(), dtype=dtype or self.dtype, copy=True, **layout))

    def factory(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(make)
        def made(*args: Any, **kwargs: Any) -> Tensor:
            if not is_mps(kwargs.get("device")):
                return make(*args, **kwargs)
            if kwargs.get("generator") is not None:
                raise RuntimeError("Expected a 'mps' device type for generator but found 'cpu'")
            return MpsTensor(make(*args, **{**kwargs, "device": "cpu"}))

        return made

    monkeypatch.setattr(torch.backends.mps, "is_available", functools.cache(lambda: True))
    monkeypatch.setattr(torch.Tensor, "to", to)
    for name in (*_FACTORIES, "zeros"):
        monkeypatch.setattr(torch, name, factory(getattr(torch, name)))
    # Modules get new parameters when they move: the old ones' memory cannot become another class's.
    monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
