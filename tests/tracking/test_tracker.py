"""The tracker: what it measures, that training goes on as without it, what it says of layers."""

import copy
import csv
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightly_collapse import functional
from lightly_collapse.tracking import (
    CollapseAlarm,
    CollapseError,
    CollapseTracker,
    RepresentationHook,
)
from lightly_collapse.tracking.calls import CallRecorder


def encoder():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 6),
    )


class Siamese(nn.Module):
    def __init__(self, recompute=None):
        super().__init__()
        self.backbone = encoder()
        self.head = nn.Linear(6, 4)
        self.recompute = recompute

    def forward(self, x):
        if self.recompute is not None:
            return self.head(checkpoint(self.backbone, x, use_reentrant=self.recompute))
        return self.head(self.backbone(x))


def batch(step, n=16):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(step))


def train(model, steps, tracker=None, run=None):
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    readings = []
    for step in range(steps):
        optimizer.zero_grad()
        x = batch(step)
        z0, z1 = ((model if run is None else run)(x + 0.1 * torch.randn_like(x)) for _ in range(2))
        ((z0 - z1).square().mean() + (z0.std(dim=0) - 1).square().mean()).backward()
        optimizer.step()
        if tracker is not None:
            readings.append(tracker.step())
    return readings


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_readings_are_those_of_the_rows_in_the_window():
    model = Siamese()
    seen = []
    model.backbone.register_forward_hook(lambda _, __, z: seen.append(z.detach()))
    with CollapseTracker(model, every_n_steps=5, window=2, lid_k=4) as tracker:
        readings = train(model, 10, tracker)
    assert [r is not None for r in readings] == [False, False, False, False, True] * 2
    for due, last in ((readings[4], 5), (readings[9], 10)):
        rows = torch.cat(seen[2 * (last - 2) : 2 * last])  # two steps of two views
        s = functional.singular_values(rows, center=True)
        expected = {
            "rows": 64,
            "dimensions": 6,
            "effective_rank": functional.effective_rank(s),
            "rankme": functional.rankme(rows),
            "mlid": functional.geometric_mean(functional.lid_mom(rows, k=4)),
        }
        for name, value in expected.items():
            assert due[f"collapse/backbone/{name}"] == pytest.approx(float(value), rel=1e-4)
    assert tracker.line.startswith("rank ")
    assert "/6, mLID" in tracker.line
    assert not model.backbone._forward_hooks or len(model.backbone._forward_hooks) == 1  # its own


@pytest.mark.parametrize("recompute", [None, False, True])
def test_training_is_bit_identical(recompute, tmp_path):
    states = []
    for tracked in (False, True):
        torch.manual_seed(3)
        model = Siamese(recompute)
        x = batch(0).requires_grad_()  # reentrant checkpoints want an input with a gradient
        layers = ("backbone", "backbone.0", "head")
        tracker = (
            CollapseTracker(model, layers, every_n_steps=2, lid_k=4, dirpath=tmp_path)
            if tracked
            else None
        )
        train(model, 4, tracker, run=lambda v, m=model, x=x: m(v + 0 * x))
        states.append((model.state_dict(), torch.rand(1)))
        if tracker is not None:
            tracker.close()
            assert not any(m._forward_hooks for m in model.modules())
    for name, value in states[0][0].items():
        assert torch.equal(value, states[1][0][name]), name
    assert torch.equal(states[0][1], states[1][1])  # nor was a random number drawn


@pytest.mark.parametrize("reentrant", [False, True])
def test_forward_passes_computed_again_are_not_counted(reentrant):
    model = Siamese(recompute=reentrant)
    calls = []
    model.backbone[0].register_forward_hook(lambda *_: calls.append(1))
    x = batch(0).requires_grad_()
    with CollapseTracker(model, ("backbone", "backbone.0"), every_n_steps=1, lid_k=4) as tracker:
        model(x).square().mean().backward()
        readings = tracker.step()
    assert len(calls) == 2  # forward, and once more in backward
    assert readings["collapse/backbone/rows"] == readings["collapse/backbone.0/rows"] == 16


def test_under_autocast_and_in_evaluation_mode():
    model = Siamese()
    with CollapseTracker(model, every_n_steps=2, lid_k=4) as tracker:
        model(batch(0))
        assert tracker.step() is None
        with torch.autocast("cpu", torch.bfloat16):
            model(batch(1))
        model.eval()
        model(batch(2))
        readings = tracker.step()
    assert readings["collapse/backbone/rows"] == 32
    assert readings["collapse/backbone/effective_rank"] > 1


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("layer", ["backbone", "backbone.4", "backbone._orig_mod.4"])
def test_compiled_modules(layer, fullgraph):
    torch._dynamo.reset()
    model = Siamese()
    model.backbone = torch.compile(model.backbone, backend="eager", fullgraph=fullgraph)
    with CollapseTracker(model, (layer,), every_n_steps=2, window=1, lid_k=4) as tracker:
        readings = train(model, 4, tracker)
    assert readings[1][f"collapse/{layer}/rows"] == readings[3][f"collapse/{layer}/rows"] == 32
    torch._dynamo.reset()


@pytest.mark.parametrize("layer", ["backbone", "backbone.4"])
def test_a_compiled_training_is_bit_identical(layer):
    states = []
    for tracked in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = Siamese()
        run = torch.compile(model, backend="aot_eager")
        tracker = CollapseTracker(model, (layer,), every_n_steps=2, lid_k=4) if tracked else None
        readings = train(model, 4, tracker, run)
        if tracker is not None:
            tracker.close()
            assert readings[3][f"collapse/{layer}/rows"] == 64
        states.append(model.state_dict())
    torch._dynamo.reset()
    for a, b in zip(states[0].values(), states[1].values(), strict=True):
        assert torch.equal(a, b)


def test_hooks_after_the_first_compiled_call():
    torch._dynamo.reset()
    model = Siamese()
    model.backbone = torch.compile(model.backbone, backend="eager")
    train(model, 1)
    with (
        CollapseTracker(model, ("backbone", "backbone.6"), every_n_steps=1, lid_k=4) as tracker,
        pytest.warns(UserWarning, match=r"backbone\.6 was never called"),
    ):
        (readings,) = train(model, 1, tracker)
    assert "collapse/backbone/rows" in readings
    assert "collapse/backbone.6/rows" not in readings
    torch._dynamo.reset()


class Encodes(nn.Module):
    """Used by `encode()`, as a MAE: its own forward is never called."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.norm = nn.LayerNorm(8)

    def encode(self, x, norm=True):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x) if norm else x


@pytest.mark.parametrize(("norm", "offered"), [(True, "norm"), (False, "blocks.1")])
def test_an_encoder_whose_forward_is_never_called(norm, offered):
    model = nn.ModuleDict({"backbone": Encodes()})
    with CollapseTracker(model, every_n_steps=1, lid_k=4) as tracker:
        model["backbone"].encode(torch.randn(16, 6), norm)
        message = "forward of backbone was never called; inside it these were: backbone.embed"
        with pytest.warns(UserWarning, match=message) as warned:
            assert tracker.step() == {}  # nothing, rather than NaN
        assert f'layers=("backbone.{offered}",)' in str(warned[0].message)
    with CollapseTracker(model, (f"backbone.{offered}",), every_n_steps=1, lid_k=4) as tracker:
        model["backbone"].encode(torch.randn(16, 6), norm)
        assert tracker.step()[f"collapse/backbone.{offered}/rows"] == 16


def test_blocks_called_one_by_one_are_offered_before_a_patch_embedding():
    class Aim(nn.Module):
        """As Lightly's AIM: patch embedding with parts of its own, blocks, no norm at the end."""

        def __init__(self):
            super().__init__()
            self.patch_embed = Encodes()
            self.patch_embed.forward = self.patch_embed.embed.forward
            self.blocks = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8))
            self.norm = nn.Identity()

    model = nn.ModuleDict({"backbone": Aim()})
    backbone = model["backbone"]
    with CollapseTracker(model, every_n_steps=1, lid_k=4) as tracker:
        x = backbone.patch_embed(torch.randn(16, 6))
        for block in backbone.blocks:
            x = block(x)
        backbone.norm(x)
        with pytest.warns(UserWarning, match=r'Use layers=\("backbone.blocks.1",\)'):
            tracker.step()


class Strange(torch.Tensor):
    """A tensor whose shape cannot be asked for, as those of other packages."""

    @property
    def ndim(self):
        raise AttributeError("no shape")


def test_any_error_of_an_output_is_warned_of():
    layer = nn.Identity()
    with CollapseTracker(layer, ("",), every_n_steps=1) as tracker:
        with pytest.warns(UserWarning, match="cannot be measured: no shape"):
            layer(torch.zeros(4, 4).as_subclass(Strange))
        assert tracker.step() == {}


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("output", [None, (), {"a": None}, "text"])
def test_compiled_layers_that_give_no_tensor(output, fullgraph):
    class Layer(nn.Module):
        def forward(self, x):
            return output

    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 4))
    model.inner = Layer()
    model.forward = lambda x: (model.inner(x), model[0](x))[1]
    with CollapseTracker(model, ("0", "inner"), every_n_steps=1, lid_k=4) as tracker:
        torch.compile(model, backend="eager", fullgraph=fullgraph)(torch.randn(16, 4))
        with pytest.warns(UserWarning, match="forward of inner was never called"):
            readings = tracker.step()
    assert readings["collapse/0/rows"] == 16
    torch._dynamo.reset()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"step\n" + b"1" * 200_000])
def test_a_damaged_table_is_written_anew(tmp_path, content):
    path = tmp_path / "collapse.csv"
    path.write_bytes(content)
    model = Siamese()
    with pytest.warns(UserWarning, match="cannot be read and is written anew"):
        tracker = CollapseTracker(model, every_n_steps=1, lid_k=4, dirpath=tmp_path, initial_step=4)
    train(model, 1, tracker)
    tracker.close()
    assert [row["step"] for row in rows_of(path)] == ["5"]


def test_what_cannot_be_measured_is_warned_of_once_and_ends_nothing():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Identity()
            self.odd = nn.Identity()
            self.zero = nn.Identity()

        def forward(self, x):
            self.odd("no tensor")
            self.zero(torch.zeros(16, 4))
            return self.backbone(x)

    model = Odd()
    layers = ("backbone", "odd", "zero")

    def steps():
        with CollapseTracker(model, layers, every_n_steps=1, lid_k=4) as tracker:
            for _ in range(3):
                model(torch.randn(16, 4))
                readings = tracker.step()
        return readings

    with pytest.warns(UserWarning, match="cannot be measured") as warned:
        readings = steps()
    messages = [str(w.message) for w in warned]
    assert sum("odd cannot be measured: output must be a tensor" in m for m in messages) == 1
    assert sum(m.startswith("zero: rankme") and "all zero" in m for m in messages) == 1
    assert not any("odd" in name for name in readings)
    assert readings["collapse/backbone/rows"] == 16


def test_copies_and_pickles_of_a_tracked_model_are_not_counted():
    """Averaged copies, and checkpoints of a whole module, are made while the hooks are on."""
    model = Siamese()
    with (
        RepresentationHook(model, "backbone") as views,
        CollapseTracker(model, every_n_steps=1, lid_k=4) as tracker,
    ):
        averaged = copy.deepcopy(model)
        loaded = pickle.loads(pickle.dumps(model))
        for net in (model, averaged, loaded):
            net(batch(0))
        readings = tracker.step()
        assert len(views.views()) == 1
    assert readings["collapse/backbone/rows"] == 16
    compiled = torch.compile(averaged.eval(), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch(0)), averaged(batch(0)))
    torch._dynamo.reset()


def test_max_rows():
    model = nn.Sequential(nn.Linear(4, 4))
    with CollapseTracker(model, ("0",), every_n_steps=4, max_rows=40, lid_k=4) as tracker:
        for _ in range(4):
            model(torch.randn(16, 4))
            readings = tracker.step()
    assert readings["collapse/0/rows"] == 40


def test_the_table_is_resumed(tmp_path):
    model = Siamese()
    with CollapseTracker(model, every_n_steps=2, lid_k=4, dirpath=tmp_path / "run") as tracker:
        train(model, 5, tracker)
    path = tmp_path / "run" / "collapse.csv"
    before = rows_of(path)
    assert [row["step"] for row in before] == ["2", "4"]
    # A checkpoint of step 3: the row of step 4 is done again.
    with CollapseTracker(
        model, every_n_steps=2, lid_k=4, dirpath=tmp_path / "run", initial_step=3
    ) as tracker:
        readings = train(model, 3, tracker)
    assert [r is not None for r in readings] == [True, False, True]
    after = rows_of(path)
    assert [row["step"] for row in after] == ["2", "4", "6"]
    assert after[0] == before[0]
    assert float(after[2]["backbone/rankme"]) == readings[2]["collapse/backbone/rankme"]
    with CollapseTracker(model, every_n_steps=2, lid_k=4, dirpath=tmp_path / "run") as tracker:
        train(model, 2, tracker)
    assert [row["step"] for row in rows_of(path)] == ["2"]  # a new run


def test_a_disk_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").touch()
    model = Siamese()
    with (
        CollapseTracker(model, every_n_steps=1, lid_k=4, dirpath=tmp_path / "file") as tracker,
        pytest.warns(UserWarning, match="cannot be written"),
    ):
        assert train(model, 1, tracker)[0]


def test_the_alarm_is_asked():
    model = Siamese()
    nn.init.zeros_(model.backbone[6].weight)
    with CollapseTracker(model, every_n_steps=1, lid_k=4, alarm=CollapseAlarm()) as tracker:
        model(batch(0))
        with pytest.warns(UserWarning, match="backbone has collapsed: all rows are equal"):
            tracker.step()
    alarm = CollapseAlarm(raise_on_alarm=True)
    with CollapseTracker(model, every_n_steps=1, lid_k=4, alarm=alarm) as tracker:
        model(batch(0))
        with (
            pytest.warns(UserWarning, match="cannot be computed"),
            pytest.raises(CollapseError, match="all rows are equal"),
        ):
            tracker.step()


def test_the_alarm_is_recorded_and_may_stop(tmp_path):
    model = Siamese()
    nn.init.zeros_(model.backbone[6].weight)
    alarm = CollapseAlarm(stop_on_alarm=True)
    settings = {"every_n_steps": 1, "lid_k": 4, "dirpath": tmp_path}
    with CollapseTracker(model, alarm=alarm, **settings) as tracker:
        assert not tracker.should_stop
        model(batch(0))
        with pytest.warns(UserWarning, match="has collapsed"):
            readings = tracker.step()
        assert tracker.should_stop
        assert readings["collapse/alarm"] == 1.0
        nn.init.orthogonal_(model.backbone[6].weight)
        model(batch(1))
        assert tracker.step()["collapse/alarm"] == 0.0
    with (tmp_path / "collapse.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert "backbone has collapsed" in first["alarm_message"]
    assert (first["alarm"], second["alarm"], second["alarm_message"]) == ("1.0", "0.0", "")


def test_bad_arguments():
    model = Siamese()
    for name in ("every_n_steps", "window", "max_rows"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            CollapseTracker(model, **{name: 0})
    with pytest.raises(ValueError, match="initial_step must not be negative"):
        CollapseTracker(model, initial_step=-1)
    with pytest.raises(ValueError, match="got 'backbon'; there are backbone"):
        CollapseTracker(model, ("backbon",))
    with pytest.raises(ValueError, match="tokens must be one of"):
        CollapseTracker(model, tokens="some")


def test_of_an_encoder_and_a_head_the_encoder_is_offered():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding_model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 8))
            self.projection_head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    model = nn.Module()
    model.wrapper = Wrapper()
    with CollapseTracker(model, layers=("wrapper",), every_n_steps=1, window=1) as tracker:
        wrapper = model.wrapper
        wrapper.projection_head(wrapper.embedding_model(torch.randn(16, 4)))
        with pytest.warns(UserWarning, match=r'Use layers=\("wrapper.embedding_model",\)'):
            tracker.step()


def test_a_layer_that_is_called_only_while_no_rows_are_taken_is_not_said_to_be_silent():
    model = encoder()
    calls = CallRecorder({"6": model[6]}, taking=lambda: False)
    model(batch(0))
    assert calls.explain("6").startswith("forward of 6 was called, but not while its rows")
