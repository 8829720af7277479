"""Prefix search: any prefix is found, the online network comes first, wrappers are ignored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightly_collapse.io.networks import Network, choose_network, find_networks, flatten, is_head

MODEL = ["conv.weight", "conv.bias", "blocks.0.weight", "blocks.0.bias", "blocks.1.weight"]
words = st.sampled_from(["module", "backbone", "net", "0", "encoder", "_orig_mod", "state", "a-b"])
prefixes = st.lists(words, max_size=4).map(lambda parts: "".join(f"{p}." for p in parts))


@given(prefixes)
def test_any_prefix_is_found(prefix):
    names = [prefix + name for name in MODEL]
    network = find_networks([*names, "other.weight", "epoch"], MODEL)[0]
    assert network.found == len(MODEL)
    assert {network.names[name] for name in names} == set(MODEL)
    assert network.prefix == prefix


@given(prefixes, st.sampled_from(["momentum_net.", "teacher.", "encoder_k.", "ema.", "model_ema."]))
def test_the_online_network_comes_first_and_the_other_can_be_asked_for(prefix, second):
    state = {second + name: torch.zeros(2) for name in MODEL}
    state |= {prefix + name: torch.ones(2) for name in MODEL}
    networks = find_networks(state, MODEL)
    assert choose_network(networks, state).prefix == prefix
    assert choose_network(networks, state, prefix=second).prefix == second


@pytest.mark.parametrize(
    ("prefix", "second"),
    [
        ("momentum_encoder.", True),
        ("backbone_momentum.", True),
        ("module.encoder_k.", True),
        ("encoder_key.", True),
        ("target_network.net.", True),
        ("ema_model.module.", True),
        ("swa.", True),
        ("callbacks.EMA.state.", True),
        ("schema.", False),
        ("keypoints.", False),
        ("module.encoder_q.", False),
        ("backbone.", False),
        ("", False),
    ],
)
def test_second_networks_are_known_by_their_names(prefix, second):
    assert Network(prefix, {}, 1).is_second == second


def test_a_sequential_of_the_children_is_read_by_position():
    names = ["0.weight", "0.bias", "3.0.weight", "3.0.bias", "3.1.weight"]
    (network,) = find_networks(names, MODEL, ["conv", "blocks"])
    assert dict(network.names) == dict(zip(names, MODEL, strict=True))
    assert network.numbers == (0, 3)


def test_names_that_agree_by_chance_are_no_network():
    full = [f"a.{name}" for name in MODEL]
    assert [n.prefix for n in find_networks([*full, "b.conv.weight"], MODEL)] == ["a."]
    assert find_networks(["x.y"], MODEL) == []


def test_what_is_flattened_and_what_is_left_out():
    w = torch.zeros(2)
    content = {
        "state_dict": {"w": w, 3: w},
        "model": {"w": w},
        "student": {"model": {"w": w}},
        "optimizer_states": [{"state": {0: {"w": w}}}],
        "optimizer": {"state": {"w": {"exp_avg": w}}},
        "loops": {"fit": {"w": w}},
        "epoch": 3,
    }
    assert set(flatten(content)) == {"w", "model.w", "student.w"}
    saved = {"ModelCheckpoint": {"kth_value": torch.tensor(0.5)}, "EMA": {"w": torch.ones(2)}}
    assert set(flatten({"state_dict": {"w": torch.ones(2)}, "callbacks": saved})) == {
        "w",
        "callbacks.EMA.w",
    }
    endless = {"w": w}
    endless["model"] = endless
    assert "w" in flatten(endless)


def test_heads():
    assert is_head("projection_head.layers.0.weight")
    assert not is_head("header.weight")
