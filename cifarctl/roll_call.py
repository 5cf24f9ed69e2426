"""Which of several processes does not answer, when an exchange between them has failed. Importing this imports no
torch.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from cifarctl.errors import ProcessLostError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# For how many seconds processes that still run may say so.
_ANSWER_SECONDS = 10.0


class RollCall:
    """store: what all processes reach even if one of them is gone. seconds: how long an exchange may take."""

    def __init__(self, store: "Store", rank: int, size: int, seconds: float) -> None:
        self._store, self._rank, self._size, self._seconds = store, rank, size, seconds

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Inside, this process exchanges something with the others. What the backends raise becomes ProcessLostError,
        which names the processes that did not answer in time.
        """
        started = time.monotonic()
        try:
            yield
        except RuntimeError as error:  # gloo raises it bare; torch's own distributed errors are kinds of it
            has_timed_out = time.monotonic() - started > 0.9 * self._seconds
            reason = error
        else:
            return
        try:
            silent = self._silent(has_timed_out=has_timed_out)
        except RuntimeError:  # the store is gone as well, perhaps with a machine
            silent = []
        if not silent:
            raise lost(self._rank, reason)
        who = f"process{'es' if len(silent) > 1 else ''} {' and '.join(map(str, silent))}"
        raise ProcessLostError(
            f"{who} did not answer for {self._seconds:g} s",
            hint="if it was only slow, CIFARCTL_TIMEOUT=SECONDS waits longer",
        )

    def _silent(self, *, has_timed_out: bool) -> list[int]:
        """The processes that do not answer; none if no process has waited for them in vain."""
        import torch.distributed as dist

        self._store.set_timeout(timedelta(seconds=_ANSWER_SECONDS))
        if has_timed_out:
            self._store.set("in vain", "yes")
        elif not self._store.check(["in vain"]):
            return []
        if dist.is_initialized() and dist.get_backend() == "gloo":
            dist.destroy_process_group()  # which those notice that still wait for an answer of this one
        self._store.set(f"process {self._rank}", "is here")
        deadline = time.monotonic() + _ANSWER_SECONDS
        silent = [rank for rank in range(self._size) if rank != self._rank]
        while silent and time.monotonic() < deadline:
            time.sleep(0.05)
            silent = [rank for rank in silent if not self._store.check([f"process {rank}"])]
        return silent


def lost(rank: int, reason: Exception) -> ProcessLostError:
    """The error of process `rank` if an exchange failed for `reason` and nobody knows which process is gone."""
    said = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
    return ProcessLostError(
        f"process {rank} lost the others ({said})",
        hint="the first to fail says why; torchrun --max-restarts N goes on from the checkpoint",
    )
