"""Hidden features: which numbers become rows, and that hooks come off."""

import pytest
import torch
from torch import nn

from lightly_collapse.metrics import FeatureHooks, feature_rows, hidden_features
from lightly_collapse.report import measure


def test_every_position_of_a_feature_map_is_a_row_of_channels():
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    rows = feature_rows(x, "all", "first")
    assert rows.shape == (40, 3)
    torch.testing.assert_close(rows[0], x[0, :, 0, 0])
    torch.testing.assert_close(rows[27], x[1, :, 1, 2])
    torch.testing.assert_close(feature_rows(x, "mean", "first"), x.mean(dim=(2, 3)))


def test_tokens_vectors_and_named_channel_axes():
    tokens = torch.randn(2, 7, 5)
    torch.testing.assert_close(feature_rows(tokens, "all", "last"), tokens.reshape(14, 5))
    torch.testing.assert_close(feature_rows(tokens, "mean", "last"), tokens.mean(dim=1))
    torch.testing.assert_close(feature_rows(tokens, channels=1), tokens.mean(dim=2))
    vectors = torch.randn(3, 4)
    for positions in ("all", "mean"):
        assert torch.equal(feature_rows(vectors, positions), vectors)
    swin = torch.randn(2, 4, 4, 6)
    torch.testing.assert_close(feature_rows(swin, channels=-1), swin.mean(dim=(1, 2)))
    assert torch.equal(feature_rows((vectors, "more")), vectors)


def test_features_of_named_layers_of_all_their_calls():
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    x = torch.randn(5, 4)
    features = hidden_features(net, x, ["0", "1"])
    first = shared(x)
    torch.testing.assert_close(features["0"], torch.cat([first, shared(first.relu())]))
    torch.testing.assert_close(features["1"], first.relu())
    assert not features["0"].requires_grad


def run_hooked(net, x):
    with FeatureHooks(net, ["0", ""], lambda *_: None):
        assert net._forward_hooks
        net(x)


def test_hooks_come_off_after_an_exception():
    net = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match="shapes"):
        run_hooked(net, torch.zeros(2, 3))
    assert not net._forward_hooks
    assert not net[0]._forward_hooks


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return {"out": self.used(x)}


def test_bad_input():
    net = TwoHeads()
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="got 'usde'; there are used"):
        hidden_features(net, x, ["usde"])
    with pytest.raises(ValueError, match="at least one layer name"):
        hidden_features(net, x, [])
    with pytest.raises(ValueError, match="must be called in forward, got 'unused'"):
        hidden_features(net, x, ["unused"])
    with pytest.raises(ValueError, match="got dict with the tensors a, b"):
        feature_rows({"a": x, "b": x})
    with pytest.raises(ValueError, match="got int"):
        feature_rows(3)
    with pytest.raises(ValueError, match=r"channels must be given.*\(2, 3, 4\) holds them"):
        feature_rows(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="channels must be auto, first, last or an axis"):
        FeatureHooks(net, ["used"], print, channels="middle")
    with pytest.raises(ValueError, match="tokens must be one of auto, cls, patch, mean, all"):
        feature_rows(x, "some")
    with pytest.raises(ValueError, match="batch and a channel axis"):
        feature_rows(torch.zeros(3))
    with pytest.raises(ValueError, match="channels must be an axis"):
        feature_rows(x, channels=2)


def test_of_a_backbone_of_transformers_the_deepest_map():
    maps = (torch.zeros(2, 4, 8, 8), torch.ones(2, 6, 4, 4))
    output = {"feature_maps": maps, "hidden_states": None}
    torch.testing.assert_close(feature_rows(output, channels="first"), torch.ones(2, 6))


class OfficialDINOv2(nn.Module):
    """Gives its tokens as DINOv2's own code does."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.register_tokens = nn.Parameter(torch.zeros(1, 2, 4))

    def forward(self, x):
        return {
            "x_norm_clstoken": x[:, 0],
            "x_norm_regtokens": x[:, 1:3],
            "x_norm_patchtokens": x[:, 3:],
        }


def test_tokens_that_dinov2_gives_apart():
    x = torch.randn(5, 12, 4)
    found = hidden_features(OfficialDINOv2(), x, [""], tokens="auto")
    torch.testing.assert_close(found[".cls"], x[:, 0])
    torch.testing.assert_close(found[".patch"], x[:, 3:].flatten(0, 1))
    every = hidden_features(OfficialDINOv2(), x, [""], tokens="mean")[""]
    torch.testing.assert_close(every, x[:, 3:].mean(dim=1))
    report = measure(OfficialDINOv2(), [x], [], lid_k=2)
    assert [(r.name, r.scalars["rows"]) for r in report.layers] == [
        ("output", 5),
        ("output.patch", 45),
    ]
