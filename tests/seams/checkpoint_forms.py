"""Every form in which a network's weights come: functions that write one and say how to load it."""

import argparse
import copy
import json

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel


def noise(state):
    return {n: torch.rand_like(v) if v.is_floating_point() else v for n, v in state.items()}


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def tensors(net):
    """Copies: safetensors refuses memory that two names share."""
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


class Wrapped(nn.Module):
    """A module of Lightly's tutorials: backbone, momentum copy, head."""

    def __init__(self, net):
        super().__init__()
        self.backbone_momentum = copy.deepcopy(net)
        with torch.no_grad():
            for parameter in self.backbone_momentum.parameters():
                parameter.add_(1)
        self.backbone = net
        self.projection_head = nn.Linear(8, 8)


def saved(content):
    def write(net, folder):
        torch.save(content(net), folder / "c.pth")
        return folder / "c.pth"

    return write


def averaged(net):
    """Lightning's WeightAveraging: the averages as state_dict, the current weights beside them."""
    return {
        "state_dict": noise(under("backbone.", net.state_dict())),
        "current_model_state": under("backbone.", net.state_dict()),
        "averaging_state": {"n_averaged": torch.tensor(3)},
        "epoch": 3,
    }


def vissl(net):
    trunk = under("_feature_blocks.", net.state_dict())
    model = {"trunk": trunk, "heads": {"0.clf.0.weight": torch.zeros(2, 2)}}
    return {
        "classy_state_dict": {
            "base_model": {"model": model, "meta": {}},
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}},
        },
        "phase_idx": 3,
    }


def dino(net):
    state = net.state_dict()
    return {
        "student": under("module.backbone.", state) | {"module.head.mlp.0.weight": torch.ones(3)},
        "teacher": noise(under("backbone.", state)),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        "args": argparse.Namespace(arch="resnet50", lr=0.1),
    }


def moco(net):
    state = net.state_dict()
    queries = under("module.encoder_q.", state)
    keys = noise(under("module.encoder_k.", state))
    return {"epoch": 3, "state_dict": keys | queries | {"module.queue": torch.zeros(3, 3)}}


def partly_compiled(net):
    name = next(name for name, child in net.named_children() if child.state_dict())
    first, inside = f"{name}.", f"{name}._orig_mod."
    state = {
        inside + key.removeprefix(first) if key.startswith(first) else key: value
        for key, value in net.state_dict().items()
    }
    return under("net._fsdp_wrapped_module.", state)


FORMS = {
    "plain": saved(lambda net: net.state_dict()),
    "model": saved(lambda net: {"model": net.state_dict(), "epoch": 3}),
    "network": saved(lambda net: {"network": net.state_dict()}),
    "lightning": saved(lambda net: {"state_dict": Wrapped(net).state_dict(), "epoch": 3}),
    "lightly children": saved(
        lambda net: {"state_dict": Wrapped(nn.Sequential(*net.children())).state_dict()}
    ),
    "ddp": saved(lambda net: {"model": under("module.", net.state_dict())}),
    "compiled": saved(lambda net: nn.ModuleList([torch.compile(net)])[0].state_dict()),
    "a mix": saved(
        lambda net: {"state_dict": under("module.backbone._orig_mod.", net.state_dict())}
    ),
    "partly compiled": saved(partly_compiled),
    "averaged model beside": saved(
        lambda net: {"model": net.state_dict(), "model_ema": noise(net.state_dict())}
    ),
    "averaged alone": saved(lambda net: under("ema_model.", AveragedModel(net).state_dict())),
    "timm ema": saved(
        lambda net: {"state_dict_ema": noise(net.state_dict()), "state_dict": net.state_dict()}
    ),
    "weight averaging": saved(averaged),
    "ema callback": saved(
        lambda net: {
            "callbacks": {"EMA{'decay': 0.99}": {"ema_state_dict": noise(net.state_dict())}},
            "state_dict": under("model.", net.state_dict()),
        }
    ),
    "vissl": saved(vissl),
    "dino": saved(dino),
    "moco": saved(moco),
    "swav": saved(
        lambda net: under("module.", net.state_dict()) | {"module.prototypes.weight": torch.ones(3)}
    ),
}


def form(name):
    def add(write):
        FORMS[name] = write
        return write

    return add


@form("legacy torch.save")
def legacy(net, folder):
    path = folder / "c.pth"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    return path


@form("safetensors")
def safetensors(net, folder):
    save_file(under("backbone.", tensors(net)), folder / "c.safetensors")
    return folder / "c.safetensors"


def _shards(net, save, folder, name):
    state = tensors(net)
    names = list(state)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = {}
    for i, part in enumerate(parts):
        shard = name.format(f"-0000{i + 1}-of-00002")
        save({n: state[n] for n in part}, folder / shard)
        files |= dict.fromkeys(part, shard)
    index = folder / f"{name.format('')}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


@form("sharded safetensors")
def sharded_safetensors(net, folder):
    return _shards(net, save_file, folder, "model{}.safetensors")


@form("sharded folder")
def sharded_folder(net, folder):
    _shards(net, torch.save, folder, "pytorch_model{}.bin")
    return folder


@form("distributed")
def distributed(net, folder):
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415

    state = {"model": net.state_dict(), "epoch": 3, "optimizer": {"state": {"a": torch.ones(2)}}}
    dcp.save(state, checkpoint_id=folder / "step", no_dist=True)
    return folder / "step"
