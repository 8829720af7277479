"""Devices by name, as far as they are there."""

import torch


def find_device(name: str) -> torch.device:
    """The device of a name, if it can compute here.

    Args:
        name: `auto` (the first GPU, or else the CPU), `cpu`, `cuda`, `cuda:N`, `mps`, or another
            that torch knows.

    Returns:
        The device.

    Raises:
        ValueError: if torch does not know it, or there is no such device in this machine.

    Examples:
        >>> find_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # Whatever is missing, a driver, the device or its backend, shows at the first tensor.
        torch.zeros(1, device=device).item()
    except (ImportError, RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used on this machine: {reason}") from error
    return device
