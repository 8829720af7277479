"""Functions called on the workers of a Ray cluster, their results as they come."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightly_collapse.io.embeddings_block import needed

_RETRIES = 5  # of a task whose worker died


def connect(address: str | None) -> Any:
    """Join a Ray cluster, once in a process.

    Args:
        address: of the cluster; by default the running one or a new one on this machine.

    Returns:
        The module `ray`.

    Raises:
        ImportError: if Ray is not installed.
        ConnectionError: if there is no cluster at the address.
    """
    ray = needed("ray", extra="ray")
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConnectionError(f"address: no Ray cluster at {address}: {reason}") from error
    return ray


def remote_results(
    ray: Any,
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    *,
    at_once: int | None = None,
    resources: Callable[..., Mapping[str, float]] = lambda *_: {"num_cpus": 1},
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Call a function once for each tuple of arguments; the results in the order in which they end.

    A call whose worker died is made again. One that raises ends all of them.

    Args:
        ray: what `connect` returned.
        function: to be called on the workers.
        calls: the arguments; object references among them are given to the function as values.
        at_once: number of calls submitted and not finished at most; all by default.
        resources: from the arguments of a call to `num_cpus` and `num_gpus` of its worker.

    Yields:
        The arguments of a call and its result.

    Raises:
        ValueError: that of the function; likewise OSError and ImportError.
        OSError: if the workers of a call die again and again.
    """
    remote = ray.remote(max_retries=_RETRIES)(function)
    todo = iter(calls)
    running: dict[Any, tuple[Any, ...]] = {}

    def start() -> bool:
        call = next(todo, None)
        if call is None:
            return False
        running[remote.options(**resources(*call)).remote(*call)] = call
        return True

    while (at_once is None or len(running) < at_once) and start():
        pass
    try:
        with _plain_errors(ray):
            while running:
                done, _ = ray.wait(list(running), num_returns=1)
                call = running.pop(done[0])
                start()
                yield call, ray.get(done[0])
    finally:
        for waiting in running:
            ray.cancel(waiting, force=False)


def actor_results(
    ray: Any,
    worker: type,
    arguments: tuple[Any, ...],
    calls: Iterable[tuple[Any, ...]],
    *,
    actors: int,
    resources: Mapping[str, float],
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """As `remote_results`, by processes that keep what is costly to make, such as a model.

    A process that died is started anew, and its call is made again: a call must leave nothing in
    the process that another one needs.

    Args:
        ray: what `connect` returned.
        worker: a class whose method `call` is called.
        arguments: of its constructor; object references among them are given to it as values.
        calls: the arguments of the method.
        actors: number of processes; the cluster must have room for all of them.
        resources: `num_cpus` and `num_gpus` of a process.

    Yields:
        The arguments of a call and its result.

    Raises:
        ValueError: as `remote_results`.
        OSError: as `remote_results`.
    """
    kind = ray.remote(max_restarts=_RETRIES, max_task_retries=_RETRIES, **resources)(worker)
    pool = [kind.remote(*arguments) for _ in range(actors)]
    running: dict[Any, tuple[Any, tuple[Any, ...]]] = {}
    todo = iter(calls)

    def start(actor: Any) -> None:
        call = next(todo, None)
        if call is not None:
            running[actor.call.remote(*call)] = (actor, call)

    try:
        with _plain_errors(ray):
            for actor in pool:
                start(actor)
            while running:
                done, _ = ray.wait(list(running), num_returns=1)
                actor, call = running.pop(done[0])
                start(actor)
                yield call, ray.get(done[0])
    finally:
        for actor in pool:
            ray.kill(actor)


@contextmanager
def _plain_errors(ray: Any) -> Iterator[None]:
    """Raise what a function raised on a worker as its own error; dead workers as an OSError."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, (ValueError, OSError, ImportError)):
            raise cause from error
        raise
    except ray.exceptions.RayError as error:  # such as workers killed for want of memory
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"workers of the Ray cluster died again and again: {reason}") from error
