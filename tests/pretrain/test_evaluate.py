"""The probe command, and the measures of the run's held-out images."""

import json
import math
from pathlib import Path

import pytest
import torch
from lightly.utils.benchmarking.knn import knn_predict
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import normalize

from lightly_collapse.cli import main
from lightly_collapse.io.digits import digits_split
from lightly_collapse.io.models import load_model
from lightly_collapse.pretrain.command import pretrain
from lightly_collapse.pretrain.data import CIFAR10, ImageFolder
from lightly_collapse.pretrain.evaluate import probe

WORDS = [
    *("--model", "SimCLR", "--model.backbone.stem", "cifar", "--model.backbone.width", "4"),
    *("--data", "Digits", "--data.batch_size", "32", "--data.train_images", "128"),
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_epochs", "1"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    pretrain([*WORDS, "--output", str(folder)])
    return folder


def test_measures_the_backbone_on_the_data_of_its_run(run, tmp_path, capsys):
    measured = probe(run / "last.ckpt", output=str(tmp_path))
    assert "SimCLR" in capsys.readouterr().out
    record = json.loads((tmp_path / "probe.json").read_text())
    assert record["method"] == "SimCLR"
    assert record["knn_20"] == measured.accuracy["knn_20"]
    assert set(measured.accuracy) == {"knn_20", "knn_200", "linear", "linear_top5"}
    # The same again from the definitions, on images loaded here.
    split = digits_split(16)
    backbone = load_model(checkpoint=run / "last.ckpt").model.requires_grad_(False)
    mean, std = 0.305, 0.33
    x = (split.test_images.mul(255).round() / 255 - mean) / std
    features = backbone(x.expand(-1, 3, -1, -1)).double()
    s = torch.linalg.svdvals(features - features.mean(dim=0))
    p = s / s.sum()
    assert measured.output.scalars["effective_rank"] == pytest.approx(
        math.exp(-float((p * p.clamp(min=1e-300).log()).sum())), rel=1e-4
    )
    assert measured.output.scalars["collapsed_dimensions"] == int((s < 1e-2 * s[0]).sum())
    chosen = sorted(torch.randperm(1257, generator=torch.Generator().manual_seed(0))[:128].tolist())
    train = (split.train_images[chosen].mul(255).round() / 255 - mean) / std
    bank = backbone(train.expand(-1, 3, -1, -1)).numpy()
    scaler = StandardScaler().fit(bank)
    classifier = LogisticRegression(max_iter=1000).fit(
        scaler.transform(bank), split.train_labels[chosen].numpy()
    )
    right = classifier.score(scaler.transform(features.float().numpy()), split.test_labels.numpy())
    assert measured.accuracy["linear"] == pytest.approx(right, abs=0.01)
    assert measured.output.dimensions == 32
    weight = backbone.layer4[1].conv2.weight.flatten(1).double()
    eigenvalues = torch.linalg.eigvalsh(weight @ weight.T).flip(0)
    vote = knn_predict(
        normalize(features.float()), normalize(torch.from_numpy(bank)).T,
        split.train_labels[chosen], num_classes=10, knn_k=20, knn_t=0.07,
    )  # fmt: skip
    assert measured.accuracy["knn_20"] == pytest.approx(
        float((vote[:, 0] == split.test_labels).float().mean()), abs=0.01
    )
    ranked = (
        torch.from_numpy(classifier.predict_proba(scaler.transform(features.float().numpy())))
        .topk(5)
        .indices
    )
    right = (ranked == split.test_labels[:, None]).any(dim=1).float().mean()
    assert measured.accuracy["linear_top5"] == pytest.approx(float(right), abs=0.01)
    weights = {w.name: w for w in measured.weights}
    torch.testing.assert_close(
        torch.tensor(weights["layer4.1.conv2.weight"].normalized_eigenvalues).double(),
        eigenvalues / eigenvalues[0],
        atol=1e-4,
        rtol=0,
    )


def test_measure_names_the_images_of_the_run(run, tmp_path):
    assert main(["measure", "--checkpoint", str(run / "last.ckpt"), "--output", str(tmp_path)]) == 0
    source = json.loads((tmp_path / "measure.json").read_text())["source"]
    assert source["data"] == "held-out images of Digits"
    assert (ImageFolder("x", val="val2").held_out_name, CIFAR10("x").held_out_name) == (
        f"images in {Path('x/val2').absolute()}",
        "held-out images of CIFAR10",
    )


def test_one_classifier_can_be_asked_for(run):
    report = probe(run / "last.ckpt", protocol=["knn"], knn_k=[5])
    assert set(report.accuracy) == {"knn_5"}


def test_linear_layers_are_trained_as_published_and_on_few_labels(run, tmp_path):
    words = {"protocol": ["lars", "sgd"], "epochs": 3, "output": str(tmp_path)}
    every = probe(run / "last.ckpt", **words)
    assert set(every.accuracy) == {"lars", "lars_top5", "sgd", "sgd_top5"}
    for name in ("lars", "sgd"):
        assert 0.1 < every.accuracy[name] <= every.accuracy[f"{name}_top5"] <= 1
    # The same seed gives the same accuracies; fewer labels are the stated number.
    assert probe(run / "last.ckpt", **words).accuracy == every.accuracy
    few = probe(run / "last.ckpt", labels=0.1, crops=False, **words)
    record = json.loads((tmp_path / "probe.json").read_text())
    assert record["settings"]["labelled_images"] == few.settings["labelled_images"] < 20


def test_a_picture_is_drawn(run, tmp_path):
    probe(run / "last.ckpt", protocol=["knn"], knn_k=[5], picture=True, output=str(tmp_path))
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match="picture needs --output"):
        probe(run / "last.ckpt", picture=True)


def test_a_subvector_is_the_first_entries_or_random_ones(run):
    whole = probe(run / "last.ckpt", protocol=["knn"])
    first = probe(run / "last.ckpt", protocol=["knn"], dimensions=4)
    drawn = probe(run / "last.ckpt", protocol=["knn"], dimensions=4, chosen="random", seed=1)
    assert (whole.output.dimensions, first.output.dimensions) == (32, 4)
    assert first.settings["dimensions"] == "first 4"
    assert first.output.spectrum != drawn.output.spectrum
    every = probe(run / "last.ckpt", protocol=["knn"], dimensions=32, chosen="random")
    assert every.accuracy == whole.accuracy


def test_digits_and_folders_are_data_by_name(run, tmp_path):
    assert probe(run / "last.ckpt", data="digits").output.scalars["rows"] == 540
    for part, images in (("train", 6), ("test", 11)):
        for label in ("a", "b"):
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for i in range(images):
                value = 200 * (label == "b") + i
                Image.new("RGB", (20, 20), (value, i, i)).save(folder / f"{i}.png")
    report = probe(run / "last.ckpt", data=str(tmp_path / "images"), image_size=16)
    assert report.output.scalars["rows"] == 22
    assert report.accuracy["linear"] == 1.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoint", "nowhere.ckpt"], "nowhere.ckpt"),
        ([], "checkpoint"),
        (["--checkpoint", "{run}/config.yaml"], "config.yaml"),
        (
            ["--checkpoint", "{run}/last.ckpt", "--data", "Nonsense"],
            "folder that holds train and val",
        ),
        (["--checkpoint", "{run}/last.ckpt", "--device", "abacus"], "abacus"),
        (["--checkpoint", "{run}/last.ckpt", "--dimensions", "33"], "at most the representation's"),
        (
            ["--checkpoint", "{run}/last.ckpt", "--labels", "0"],
            "labels must be a share",
        ),
        (["--checkpoint", "{run}/last.ckpt", "--protocol", "svm"], "lars"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_2(run, capsys, words, said):
    assert main(["probe", *(word.format(run=run) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("lightly-collapse probe: error: ")
    assert said in error
