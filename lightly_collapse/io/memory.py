"""Whether there is memory for what was asked for, before it is allocated."""

import os


def require_memory(count: int, what: str) -> None:
    """Raise unless the machine has that much memory.

    Args:
        count: bytes needed at least.
        what: needs them, for the message, with the arguments that decide it.

    Raises:
        ValueError: if there is less memory in all, used or not.

    Examples:
        >>> require_memory(10**18, "image_size 100000 and batch_size 64")
        Traceback (most recent call last):
        ValueError: image_size 100000 and batch_size 64 need ... GiB of memory, this machine has ...
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return
    if count > total:
        gib = 2**30
        raise ValueError(
            f"{what} need {count / gib:,.0f} GiB of memory, this machine has {total / gib:,.0f}"
        )
