"""A Ray cluster of this process's own, of two workers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

ROOT = str(Path(__file__).parents[1])


@contextmanager
def ray_cluster(memory: int = 100_000_000) -> Iterator[None]:
    """The cluster, with so many bytes for objects."""
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=memory,
        runtime_env={"env_vars": {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()
