"""What a command does when nobody reads its output any more."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_STDOUT = 1
_STATUS = 128 + 13  # what a shell says of a program that SIGPIPE ended


@contextmanager
def ending_with_the_reader() -> Iterator[None]:
    """End the program silently when the reader of its standard output has gone, as `head` does.

    What is left in the buffer at the end is written here, so that a full disk behind it is an error
    of the command and not of the interpreter's last moment.

    Raises:
        SystemExit: with status 141, where the reader has gone.
        OSError: if the output cannot be written for another reason.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        # rich exits at a broken pipe by itself, with status 1.
        of_rich = isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)
        if not of_rich and (isinstance(error, SystemExit) or not _is_unread()):
            raise
        # The interpreter flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
        raise SystemExit(_STATUS) from None


def _is_unread() -> bool:
    """Whether it is the standard output that is broken, and not a pipe to another process."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(_STDOUT, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
