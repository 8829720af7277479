"""What the losses need of torch.distributed beyond Lightly's gather."""

import torch
import torch.distributed as dist
from torch import Tensor


def gathering() -> bool:
    """Whether there is more than one process to gather from."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


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
