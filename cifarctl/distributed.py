"""Work in several processes, which torchrun has started: how they share it, and exchange results.

All of them hold the same weights and take the same steps; only process 0 writes and prints. Importing this imports no
torch.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

from cifarctl.errors import UsageError
from cifarctl.roll_call import RollCall, lost

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

# How long processes wait for each other, unless CIFARCTL_TIMEOUT says so. What one of them does alone while the others
# wait, such as writing a checkpoint, takes seconds.
_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Ranks:
    """This process's number, counting from 0, among `size` processes.

    All processes must call the methods in the same order. They raise ProcessLostError if a process has ended, or does
    not answer in time.
    """

    rank: int = 0
    size: int = 1
    _roll_call: RollCall | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """True for the one process that writes and prints."""
        return self.rank == 0

    def share(self, batch: "Tensor") -> "Tensor":
        """This process's share of a batch, (B, …) -> (B / size, …). Shares do not overlap and leave nothing out."""
        return batch[self.rank :: self.size]

    def average(self, tensors: "Iterable[Tensor]", request: int = 0) -> "Tensor | int":
        """Replace each float tensor by its mean over the processes, in one message.

        Returns the greatest `request` of all processes, so that they all follow it at the same step. A request is a
        whole number from 0 to 2^24, which float32 holds exactly, and is not averaged. Of several processes, the result
        is a scalar on the tensors' device, and reading it waits for a GPU.
        """
        if self.size == 1:
            return request
        import torch

        tensors = list(tensors)
        requests = torch.zeros(self.size, device=tensors[0].device)  # a place for each process, so that no two add up
        requests[self.rank] = request
        with torch.no_grad(), self._exchange():
            message = torch.cat([*(tensor.flatten().float() for tensor in tensors), requests])
            torch.distributed.all_reduce(message)
            *sums, requests = message.split([*(tensor.numel() for tensor in tensors), self.size])
            for tensor, total in zip(tensors, sums, strict=True):
                tensor.copy_(total.view_as(tensor) / self.size)
        return requests.max()

    def from_main(self, value: T) -> T:
        """The value of process 0, in all of them."""
        if self.size == 1:
            return value
        import torch

        box = [value]
        with self._exchange():
            torch.distributed.broadcast_object_list(box)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        if self.size == 1:
            return [value]
        import torch

        values: list[T] = [value] * self.size
        with self._exchange():
            torch.distributed.all_gather_object(values, value)
        return values

    def mapped(self, inputs: "Tensor", function: "Callable[[Tensor], Tensor]") -> "Tensor":
        """`function` of all rows of `inputs`, (N, …) -> (N, …). Each process computes a part."""
        if self.size == 1:
            return function(inputs)
        import torch

        part = inputs.tensor_split(self.size)[self.rank]
        parts = self.gather(function(part).cpu() if len(part) else None)
        return torch.cat([part for part in parts if part is not None]).to(inputs.device)

    def streamed(self, items: Iterator[T], function: Callable[[Iterator[T]], Iterator[R]], part: int) -> Iterator[R]:
        """The results of `function` for `items`, one per item, in their order.

        Of several processes, the first reads the items and sends `part` at a time to each; only it gets the results.
        """
        if self.size == 1:
            yield from function(items)
            return
        while dealt := self.from_main(list(islice(items, part * self.size)) if self.is_main else []):
            length = -(-len(dealt) // self.size)
            results = self.gather(list(function(iter(dealt[self.rank * length :][:length]))))
            if self.is_main:
                yield from chain.from_iterable(results)

    def _exchange(self) -> AbstractContextManager[None]:
        return self._roll_call.exchange() if self._roll_call else nullcontext()


ALONE = Ranks()


def process_number() -> int:
    """This process's number among those that torchrun has started; 0 without torchrun."""
    return int(os.environ.get("RANK", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def restarts() -> int:
    """How many times torchrun has restarted its processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def may_restart() -> bool:
    """True if torchrun restarts its processes when one of them ends early."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def local_device(device: "torch.device") -> "torch.device":
    """`device`; if it is a GPU and torchrun has started this process, the process's own GPU."""
    if device.type != "cuda" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return device
    import torch

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def torchrun_words() -> list[str]:
    """The words before `-m` in the command that has started this process and others; none without torchrun.

    OPTIONS stands for torchrun's options if there are several machines, since they differ between these.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return []
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return ["torchrun", "OPTIONS"]
    return ["torchrun", "--standalone", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1")]


def _timeout_seconds() -> float:
    given = os.environ.get("CIFARCTL_TIMEOUT", "")
    try:
        seconds = float(given or _TIMEOUT_SECONDS)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= 1e6:  # NaN is not either
        raise UsageError(f"CIFARCTL_TIMEOUT is {given!r}, not a number of seconds from 1 to 1,000,000")
    return seconds


@contextmanager
def join_ranks(device: "torch.device") -> Iterator[Ranks]:
    """Inside, this process is connected with the others that torchrun has started, if it has started several.

    They wait for each other for ten minutes, or as many seconds as CIFARCTL_TIMEOUT says. Raises ProcessLostError if
    they cannot be reached, UsageError on another CIFARCTL_TIMEOUT.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
        yield ALONE
        return
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    seconds = _timeout_seconds()
    timeout = timedelta(seconds=seconds)
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
    except RuntimeError as error:
        raise lost(process_number(), error) from None
    # The store outlives a restart, and would hold the addresses of the processes that have died.
    store = PrefixStore(f"restart {restarts()}", store)
    roll_call = RollCall(PrefixStore("roll call", store), rank, size, seconds)
    with roll_call.exchange():
        # Objects always travel by gloo; tensors on GPUs by NCCL, which after the same time ends the process itself.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        yield Ranks(rank, size, roll_call)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
