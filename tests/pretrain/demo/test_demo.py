"""The demo from the command line: what it writes, that it repeats itself, and how it refuses."""

import json
import math

import pytest
import torch

from lightly_collapse.cli import main
from lightly_collapse.pretrain.demo import run as demo_module
from lightly_collapse.pretrain.demo.methods import METHODS, DemoSettings, DigitEncoder, train
from lightly_collapse.pretrain.demo.run import demo
from tests.page_reader import assert_self_contained, count_charts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    results = demo(epochs=1, seed=3, output=folder)
    return folder, results


def test_writes_every_number_of_every_method(run):
    folder, results = run
    record = json.loads((folder / "results.json").read_text())
    assert [r["method"] for r in record["results"]] == list(METHODS)
    assert record["settings"]["seed"] == 3
    assert record["settings"]["epochs"] == 1
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    for r, result in zip(record["results"], results, strict=True):
        assert r["effective_rank"] == result.effective_rank
        assert len(r["spectrum"]) == 128
        assert r["spectrum"] == sorted(r["spectrum"], reverse=True)
        assert r["weight_eigenvalues"][0] == 1
        assert 0.5 < r["knn"] <= 1
        assert 0.5 < r["linear"] <= 1
        assert 1 <= r["effective_rank"] <= 128
        assert 1 <= r["embedding_rankme"] <= r["embedding_width"] + 0.01
        # Recomputed here from the definition rather than by the package's functions.
        p = [s / sum(r["spectrum"]) for s in r["spectrum"]]
        entropy = -sum(x * math.log(x) for x in p if x > 0)
        assert r["effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-4)
        assert r["collapsed_dimensions"] == sum(s < 1e-2 * r["spectrum"][0] for s in r["spectrum"])
    embedding_widths = {r["method"]: r["embedding_width"] for r in record["results"]}
    assert embedding_widths["directclr"] == 16
    assert embedding_widths["no-projector"] == 128


def test_page_and_figure_stand_alone(run):
    folder, _ = run
    page = (folder / "report.html").read_text()
    for method in METHODS.values():
        assert f"<td>{method.title}</td>" in page
    assert count_charts(page) == 3
    assert_self_contained(page)
    assert (folder / "spectrum.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(p.name for p in folder.iterdir()) == [
        "report.html",
        "results.json",
        "spectrum.png",
    ]


@pytest.mark.slow
def test_same_seed_gives_the_same_numbers_whatever_else_is_asked_for(run, tmp_path):
    _, results = run
    state = torch.get_rng_state()
    (again,) = demo(["ldreg"], epochs=1, seed=3, output=tmp_path)
    assert again == next(r for r in results if r.method == "ldreg")
    assert torch.equal(torch.get_rng_state(), state)
    (other,) = demo(["ldreg"], epochs=1, seed=4, output=tmp_path)
    assert other.losses != again.losses


def test_unknown_method_is_one_line_and_exit_2(capsys, tmp_path):
    assert main(["demo", "--methods", "nonsense", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'nonsense'" in error
    assert "no-projector" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs must be between 1 and 1000000, got 0"),
        (["--seed", "-1"], "seed must be between 0 and 4294967295, got -1"),
        (["--methods", ","], "methods must name at least one"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(capsys, tmp_path, arguments, message):
    assert main(["demo", *arguments, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_unwritable_output_is_refused_before_training(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "train", lambda *_, **__: pytest.fail("training started"))
    file = tmp_path / "file"
    file.touch()
    assert main(["demo", "--output", str(file / "inside")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(file) in error


def test_each_method_trains_what_it_says():
    settings = DemoSettings(epochs=1, batch_size=64)
    images = torch.rand(128, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    losses = {name: train(name, settings, images, lambda _: None).losses[0] for name in METHODS}
    assert len(set(losses.values())) == len(METHODS)
    assert losses["ldreg"] < losses["baseline"] < losses["so"]


def test_diverging_training_stops_with_the_method_and_the_epoch():
    settings = DemoSettings(epochs=1, batch_size=64, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"the loss of so is (nan|inf) in epoch 1"):
        train("so", settings, torch.rand(192, 1, 16, 16), lambda _: None)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="images must hold a batch of 256 at least, got 10"):
        train("baseline", DemoSettings(), torch.rand(10, 1, 16, 16), lambda _: None)


def test_encoder_names_its_last_convolution():
    encoder = DigitEncoder()
    assert encoder.get_parameter(encoder.last_convolution()).shape == (128, 128, 3, 3)
