"""The processes that train one model together: DistributedDataParallel under torchrun, or one process alone."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.hardware.cuda import why_no_device

_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


class Peers:
    """This process and the others that train the same model. ``rank`` 0 leads: only it decides, prints and writes."""

    def __init__(self, device: torch.device, rank: int = 0, processes: int = 1) -> None:
        self.device, self.rank, self.processes = device, rank, processes

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model wrapped so that gradients are averaged over all peers. The leader's weights and buffers are copied to all."""
        if self.processes == 1:
            return model
        on_gpu = self.device.type == "cuda"
        # DistributedDataParallel never releases its group, and a gloo thread that frees a Python tensor while the interpreter exits
        # aborts the process. In a group of its own it handles only tensors that Python never saw; the other group ends in time.
        devices, group = ([self.device], None) if on_gpu else (None, dist.new_group())
        # Buffers are shared only when needed (dropping, evaluation), since masks are as large as the weights.
        return nn.parallel.DistributedDataParallel(model, device_ids=devices, process_group=group, broadcast_buffers=False)

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Copy the leader's values to all peers."""
        if self.processes > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all peers."""
        if self.processes > 1:
            dist.all_reduce(values)
        return values

    def from_leader(self, value: Any) -> Any:
        """The leader's ``value`` (plain containers and tensors), on every peer."""
        if self.processes == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, device=self.device)
        return box[0]


@contextlib.contextmanager
def gathered(device: str | None = None) -> Iterator[Peers]:
    """The processes that torchrun started, connected over NCCL on GPUs and gloo on CPUs; without torchrun this process alone.

    ``device`` is "cpu" or "cuda"; None takes CUDA if there is a device. Raises Unavailable for a missing device and when another of the
    processes has ended, InputRefused if only some of torchrun's variables are set.
    """
    if device == "cuda" and (reason := why_no_device()):
        raise Unavailable(f"no CUDA device can be used: {reason}; leave --device out to train on the CPU")
    if device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("this PyTorch is built without CUDA; install one that has it, or leave --device out to train on the CPU")
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    given = [name for name in _BY_TORCHRUN if name in os.environ]
    if len(given) not in (0, len(_BY_TORCHRUN)):
        raise InputRefused(f"of torchrun's variables only {', '.join(given)} is set; start with torchrun, or without any of them")
    if not given:
        yield Peers(torch.device(kind, 0) if kind == "cuda" else torch.device(kind))
        return
    rank, processes, local = (int(os.environ[name]) for name in _BY_TORCHRUN)
    place = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", rank=rank, world_size=processes)
    try:
        yield Peers(place, rank, processes)
        dist.barrier()  # a process that exits early would break the others' connections
    except RuntimeError as error:
        if re.search("Connection (closed|reset) by peer", str(error)) is None:
            raise
        raise Unavailable("another process of this run has ended; the first error that was printed says why") from None
    finally:
        dist.destroy_process_group()
