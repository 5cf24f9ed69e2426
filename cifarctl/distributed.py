"""Work in several processes, which torchrun has started: how they share it, and exchange results.

All of them hold the same weights and take the same steps; only process 0 writes and prints. Importing this imports no
torch.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

from cifarctl.errors import ProcessLostError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Ranks:
    """This process's number, counting from 0, among `size` processes.

    All processes must call the methods in the same order. They raise ProcessLostError if a process has ended.
    """

    rank: int = 0
    size: int = 1

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
        with torch.no_grad(), _peers():
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
        with _peers():
            torch.distributed.broadcast_object_list(box)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        if self.size == 1:
            return [value]
        import torch

        values: list[T] = [value] * self.size
        with _peers():
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


@contextmanager
def join_ranks(device: "torch.device") -> Iterator[Ranks]:
    """Inside, this process is connected with the others that torchrun has started, if it has started several.

    Raises ProcessLostError if they cannot be reached.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
        yield ALONE
        return
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    with _peers():
        store, rank, size = next(iter(rendezvous("env://")))
        # The store outlives a restart, and would hold the addresses of the processes that have died.
        store = PrefixStore(f"restart {restarts()}", store)
        # Objects always travel by gloo; tensors on GPUs by NCCL.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield Ranks(rank, size)
    finally:
        dist.destroy_process_group()


@contextmanager
def _peers() -> Iterator[None]:
    """Turn what the backends raise when a process has ended into ProcessLostError."""
    try:
        yield
    except RuntimeError as error:  # gloo raises it bare; torch's own distributed errors are kinds of it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ProcessLostError(
            f"process {process_number()} lost the others ({reason})",
            hint="the first to fail says why; torchrun --max-restarts N goes on from the checkpoint",
        ) from None
