"""What the losses need of torch.distributed beyond Lightly's gather."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_T = TypeVar("_T")


def gathering() -> bool:
    """Whether there is more than one process to gather from."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def raise_on_all(error: ValueError | None, device: torch.device, group: Any = None) -> None:
    """Raise on every process the error of the first that has one, instead of hanging in a gather.

    Args:
        error: this process's, or None.
        device: one that the process group can communicate from.
        group: process group; the default one if None.

    Raises:
        ValueError: the message of the first process with an error, and which process that is.
    """
    failed = torch.tensor(int(error is not None), device=device)
    dist.all_reduce(failed, group=group)
    if not failed:
        return
    messages: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(messages, None if error is None else str(error), group=group)
    rank, message = next((r, m) for r, m in enumerate(messages) if m is not None)
    raise ValueError(f"{message} (on process {rank})") from error


def checked_on_all(check: Callable[[], _T], tensors: Sequence[Tensor]) -> _T:
    """What `check` returns, unless it raises a ValueError on any process: then on every one.

    Args:
        check: looks at this process's input.
        tensors: the input; the first tells the device.

    Raises:
        ValueError: as `raise_on_all`.
    """
    error, result = None, None
    try:
        result = check()
    except ValueError as found:
        error = found
    raise_on_all(error, tensors[0].device if tensors else torch.device("cpu"))
    return result  # type: ignore[return-value]


def check_same_shape(x: Tensor, name: str) -> None:
    """Raise on every process where the processes' shapes differ, instead of hanging in a gather.

    Raises:
        ValueError: if the (rows, columns) of `x` are not the same on every process.
    """
    shape = torch.tensor(x.shape, device=x.device)
    shapes = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, shape)
    if any(not torch.equal(shape, other) for other in shapes):
        raise ValueError(
            f"{name} must have one shape on all processes to be gathered, got "
            + ", ".join(str(tuple(s.tolist())) for s in shapes)
            + "; use drop_last=True in the data loader"
        )


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes, in order of rank, without gradient."""
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def mean_over_processes(loss: Tensor) -> Tensor:
    """The mean of a loss over the processes, with the gradient of this process's loss.

    DistributedDataParallel averages gradients over processes, so that with this gradient the
    parameters get that of the mean, the value that is returned.
    """
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return loss + (mean / dist.get_world_size() - loss.detach())
