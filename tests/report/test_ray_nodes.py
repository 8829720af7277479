"""Two Ray nodes, each a `ray start` process of its own: the numbers of one process."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from lightly_collapse.report.embeddings import measure_embeddings

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.slow

ROOT = str(Path(__file__).parents[2])
KEYWORDS = {"lid_size": 300, "lid_k": 8, "neighbors": "all"}
JOB = """
import json, sys, time
from pathlib import Path
import ray
from lightly_collapse.io.cluster import connect
from lightly_collapse.report import ray_engine
from lightly_collapse.report.embeddings import measure_embeddings

address, data, seen, keywords = sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
deadline = time.monotonic() + 200
while time.monotonic() < deadline:
    try:
        connect(address)
    except ConnectionError:
        time.sleep(1)
        continue
    if sum(node["Alive"] for node in ray.nodes()) == 2:
        break
    time.sleep(1)
whole = ray_engine._total

def noting(source, piece, settings):
    (seen / ray.get_runtime_context().get_node_id()).touch()
    time.sleep(0.5)  # so that no node does it all
    return whole(source, piece, settings)

ray_engine._total = noting
out = measure_embeddings(data, engine="ray", address=address, **keywords).output
print(json.dumps([out.scalars, out.intervals]))
"""


def test_two_nodes(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((900, 6)) * np.logspace(0, -1, 6)
    data, seen = tmp_path / "data", tmp_path / "nodes"
    data.mkdir()
    seen.mkdir()
    for i, part in enumerate(np.array_split(z, 6)):
        np.save(data / f"{i}.npy", part)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # paths of sockets must be short
    # A token in the home folder would be asked for by some of the processes and not by all.
    environment = os.environ | {
        "PYTHONPATH": ROOT,
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
    }
    ray = str(Path(sys.executable).with_name("ray"))
    words = [ray, "start", "--block", "--num-cpus", "1", "--object-store-memory", "80000000"]
    head = ["--head", "--port", address.partition(":")[2], "--include-dashboard", "false"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    nodes = []
    try:
        for more in ([*head, "--temp-dir", folder], ["--address", address]):
            nodes.append(
                subprocess.Popen([*words, *more], env=environment, start_new_session=True, **quiet)
            )
            time.sleep(15)
        done = subprocess.run(
            [sys.executable, "-c", JOB, address, str(data), str(seen), json.dumps(KEYWORDS)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    finally:
        for node in nodes[::-1]:
            os.killpg(node.pid, signal.SIGTERM)
            node.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-2000:]
    scalars, intervals = json.loads(done.stdout.splitlines()[-1])
    assert len(list(seen.iterdir())) == 2
    local = measure_embeddings(data, **KEYWORDS).output
    assert scalars == pytest.approx(local.scalars, rel=2e-6)
    assert intervals.keys() == local.intervals.keys()
    for name, ends in intervals.items():
        assert ends == pytest.approx(local.intervals[name], rel=2e-6), name
