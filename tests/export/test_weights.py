"""Weight files: never code, never half of one."""

import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightly.transforms import DINOTransform, SimCLRTransform
from torchvision.transforms import Compose, Normalize, ToTensor, v2

from lightly_collapse.export import normalization, read_detectron2, to_detectron2
from lightly_collapse.io.files import atomic_write


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_dictionary_of_arrays_of_every_protocol(tmp_path, protocol, kind):
    arrays = kind(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.array(2, np.int64))
    path = tmp_path / "w.pkl"
    for content in (arrays, {"model": arrays, "__author__": "x", "matching_heuristics": True}):
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        loaded = read_detectron2(path)
        assert set(loaded) == {"a", "b"}
        assert np.array_equal(loaded["a"], arrays["a"])


class Runs:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, os.mkdir, eval, exec, getattr, np.load])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_never_runs_code(tmp_path, function, protocol):
    marker = tmp_path / "ran"
    arguments = {os.system: f"touch {marker}", os.mkdir: str(marker)}
    path = tmp_path / "evil.pkl"
    evil = Runs(function, arguments.get(function, f"__import__('os').mkdir({str(marker)!r})"))
    path.write_bytes(pickle.dumps({"model": {"a": evil}}, protocol=protocol))
    with pytest.raises(ValueError, match="which no dictionary of arrays needs; not loaded"):
        read_detectron2(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([1, 2], "got a list"),
        ({}, "an empty one"),
        ({"model": {}}, "an empty one"),
        ({"a": "text"}, "'a' is str"),
        ({"model": {"a": [1.0]}}, "'a' is list"),
        ({"model": {3: np.zeros(2)}}, "names must be strings"),
        ({"a": np.array([None, "x"], dtype=object)}, "array of objects"),
        ({"a": np.array(["x"])}, "array of objects"),
    ],
)
def test_not_a_dictionary_of_arrays(tmp_path, content, why):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=why):
        read_detectron2(path)


def _saved(zipped):
    buffer = io.BytesIO()
    content = {"model": {"conv": torch.arange(5.0)}, "epoch": 3, "rates": {"lr": 0.1}}
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


_WHOLE = {
    "fuzz.pkl": pickle.dumps({"model": {"conv": np.arange(5, dtype=np.float32)}, "by": "x"}, 4),
    "zip.pth": _saved(True),
    "legacy.pth": _saved(False),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", _WHOLE)
@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_corrupt_file_is_a_value_error_that_names_it_or_harmless(tmp_path_factory, name, data):
    content = bytearray(_WHOLE[name])
    places = st.integers(0, len(content) - 1)
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=4)):
        content[place] = byte
    if data.draw(st.booleans()):
        content = content[: data.draw(places)]
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(bytes(content))
    try:
        loaded = read_detectron2(path)
    except ValueError as error:
        message = str(error)
    else:
        message = name
        assert all(isinstance(value, np.ndarray) for value in loaded.values())
    assert name in message


def test_pth(tmp_path):
    model = torchvision.models.resnet18()
    to_detectron2(model, tmp_path / "w.pth")
    loaded = read_detectron2(tmp_path / "w.pth")
    assert np.array_equal(loaded["stem.conv1.weight"], model.conv1.weight.detach().numpy())
    (tmp_path / "bad.pth").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"bad\.pth"):
        read_detectron2(tmp_path / "bad.pth")


def test_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    atomic_write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


def test_normalization_from_transforms():
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    values = {"mean": list(mean), "std": list(std)}
    for transform in (
        Compose([ToTensor(), Normalize(mean, std)]),
        v2.Compose([v2.ToImage(), v2.Compose([v2.Normalize(list(mean), list(std))])]),
        SimCLRTransform(normalize=values),
        DINOTransform(normalize=values),
        torch.nn.Sequential(v2.Normalize(list(mean), list(std))),
    ):
        assert normalization(transform) == (mean, std)
    assert normalization(ToTensor()) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="views normalize differently"):
        normalization([Normalize(mean, std), Normalize(std, mean)])


def test_transform_reaches_the_config(tmp_path):
    export = to_detectron2(
        torchvision.models.resnet18(),
        tmp_path / "w.pkl",
        transform=SimCLRTransform(normalize={"mean": [0.5, 0.25, 0.75], "std": [0.2, 0.4, 0.1]}),
    )
    assert export.pixel_mean == (0.5, 0.25, 0.75)
    assert "PIXEL_MEAN: [127.5, 63.75, 191.25]" in export.config.read_text()
    with pytest.raises(ValueError, match="not both"):
        to_detectron2(
            torchvision.models.resnet18(),
            tmp_path / "w.pkl",
            pixel_mean=[0, 0, 0],
            transform=ToTensor(),
        )
