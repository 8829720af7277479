"""Where the regularizer meets attention, buffers, compilers, scalers and sharded weights."""

import copy
import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightly_collapse.functional import orthogonality_penalty
from lightly_collapse.functional._convolution import shifts
from lightly_collapse.functional.spectral_norm import initial_basis
from lightly_collapse.loss import LDRegularizer, OrthogonalityRegularizer

KINDS = ("so", "dso", "mc", "srip", "conv")


def encoder() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=4),
        nn.Flatten(),
        nn.Linear(64, 40),
    )


# --- transformers ---------------------------------------------------------------------


def vit() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=24
    )


@pytest.mark.parametrize("kind", KINDS)
def test_torchvision_vit(kind: str) -> None:
    model = vit()
    together = OrthogonalityRegularizer(model, kind, weight=1.0)
    apart = OrthogonalityRegularizer(model, kind, weight=1.0, split_qkv=True)
    name = "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"
    fused = model.get_parameter(name)
    assert together.residuals()[name] == pytest.approx(
        orthogonality_penalty(fused, kind).item(), rel=1e-4
    )
    for part, third in zip("qkv", fused.chunk(3), strict=True):
        assert apart.residuals()[f"{name}[{part}]"] == pytest.approx(
            orthogonality_penalty(third, kind).item(), rel=1e-4
        )
    patches = orthogonality_penalty(model.conv_proj.weight, kind, stride=4)
    assert apart.residuals()["conv_proj.weight"] == pytest.approx(patches.item(), rel=1e-4)
    apart().backward()
    assert fused.grad is not None
    expected = torch.autograd.grad(
        sum(orthogonality_penalty(third, kind) for third in fused.chunk(3)), fused
    )
    if kind != "srip":  # its vectors have other signs and, where two norms are close, others
        torch.testing.assert_close(fused.grad, expected[0])


def test_timm_vit() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
    found = OrthogonalityRegularizer(model, split_qkv=True).residuals()
    assert {f"blocks.0.attn.qkv.weight[{part}]" for part in "qkv"} < found.keys()
    assert "patch_embed.proj.weight" in found
    key = model.blocks[0].attn.qkv.weight.chunk(3)[1]
    assert found["blocks.0.attn.qkv.weight[k]"] == pytest.approx(
        orthogonality_penalty(key, "so").item(), rel=1e-5
    )


def test_projections_of_different_widths() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    found = OrthogonalityRegularizer(attention, split_qkv=True).residuals()
    assert list(found) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]


def test_rows_that_do_not_divide_by_three() -> None:
    model = nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(8, 20)})})
    with pytest.raises(ValueError, match=r"attn\.qkv\.weight has 20 rows, which do not divide by"):
        OrthogonalityRegularizer(model, split_qkv=True)
    assert OrthogonalityRegularizer(model)().isfinite()


# --- the tracked vectors --------------------------------------------------------------


def tracked(model: nn.Module) -> OrthogonalityRegularizer:
    return OrthogonalityRegularizer(model, "srip", weight=1.0)


def exact(model: nn.Module) -> float:
    convolution, grouped, linear = model[0], model[2], model[4]  # type: ignore[index]
    values = [
        orthogonality_penalty(convolution.weight, "srip"),
        orthogonality_penalty(grouped.weight, "srip", groups=4),
        orthogonality_penalty(linear.weight, "srip"),
    ]
    return sum(value.item() for value in values)


def test_vectors_are_no_state() -> None:
    regularizer = tracked(encoder())
    assert regularizer.state_dict() == {}
    assert not list(regularizer.parameters())
    assert len(dict(regularizer.named_buffers())) == 3
    regularizer.load_state_dict({})


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_go_on_where_the_original_was(way: str) -> None:
    model = encoder()
    pair = nn.ModuleList([model, tracked(model)])
    pair[1]()
    if way == "deepcopy":
        twin = copy.deepcopy(pair)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(pair))
    else:
        file = io.BytesIO()
        torch.save(pair, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    torch.testing.assert_close(twin[1](), pair[1](), rtol=1e-6, atol=0)
    with torch.no_grad():
        twin[0][0].weight.mul_(2)
    assert twin[1]().item() == pytest.approx(exact(twin[0]), rel=1e-4)
    assert pair[1]().item() == pytest.approx(exact(model), rel=1e-4)


def test_first_call_and_other_weights_are_exact() -> None:
    model = encoder()
    regularizer = tracked(model)
    assert regularizer().item() == pytest.approx(exact(model), rel=1e-4)
    torch.manual_seed(7)
    other = {name: torch.randn_like(p) * p.std() for name, p in model.state_dict().items()}
    model.load_state_dict(other)
    assert regularizer().item() == pytest.approx(exact(model), rel=1e-4)
    model[4].weight = nn.Parameter(torch.randn(50, 64) / 8)  # another shape
    assert regularizer().item() == pytest.approx(exact(model), rel=1e-4)
    model.double()
    regularizer.double()
    value = regularizer()
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(exact(model), rel=1e-4)


def test_within_one_percent_while_training() -> None:
    model = encoder()
    regularizer = tracked(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    x = torch.randn(16, 3, 9, 9)
    for step in range(60):
        penalty = regularizer()
        if step >= 5:
            truth = exact(model)
            assert truth * 0.99 <= penalty.item() <= truth * (1 + 1e-5)
        optimizer.zero_grad()
        (model(x).square().mean() + 0.1 * penalty).backward()
        optimizer.step()


# --- a gradient outside of the graph ----------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_gradient_is_that_of_the_module(kind: str) -> None:
    model = encoder()
    OrthogonalityRegularizer(model, kind, weight=0.3)().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for p in model.parameters():
        p.grad = None if p.grad is None else torch.ones_like(p)
    regularizer = OrthogonalityRegularizer(model, kind, weight=0.3)
    value = regularizer.accumulate_gradient(scale=4.0)
    found = [p.grad for p in model.parameters() if p.grad is not None]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, 1 + 4 * theirs, rtol=1e-6, atol=1e-6)
    assert value is not None
    assert value.item() == pytest.approx(sum(regularizer.residuals().values()), rel=1e-5)


def test_accumulated_gradient_of_some_parameters() -> None:
    model = encoder()
    regularizer = OrthogonalityRegularizer(model)
    value = regularizer.accumulate_gradient([model[4].weight, model[4].bias])
    assert value is not None
    assert value.item() == pytest.approx(regularizer.residuals()["4.weight"])
    assert model[0].weight.grad is None
    assert model[4].weight.grad is not None
    assert regularizer.accumulate_gradient([model[4].bias]) is None
    with pytest.raises(ValueError, match=r"^scale must be positive and finite, got 0"):
        regularizer.accumulate_gradient(scale=0)


# --- compilers, scalers -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_a_graph_break(kind: str) -> None:
    model = encoder()
    OrthogonalityRegularizer(model, kind, weight=1.0)().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    regularizer = OrthogonalityRegularizer(model, kind, weight=1.0)
    compiled = torch.compile(regularizer, fullgraph=True, backend="aot_eager")
    compiled().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled(), regularizer(), rtol=1e-4, atol=0)


# Shapes with a basis of the whole space, and larger ones, wide and tall.
MATRICES = [torch.randn(8, 24), torch.randn(70, 50), torch.randn(50, 70), torch.randn(2, 40, 90)]
KERNEL = torch.randn(2, 6, 4, 3, 3)
SHIFTS = [j for shift in shifts((3, 3), (1, 1), (1, 1)) for j in shift]


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("track_spectral_norm", (MATRICES, [initial_basis(m) for m in MATRICES])),
        ("kernel_overlaps", (KERNEL, SHIFTS)),
        (
            "kernel_overlaps_gradient",
            (KERNEL, torch.randn(len(SHIFTS) // 2, 2, 6, 6), torch.ones(()), SHIFTS),
        ),
    ],
)
def test_operators_give_what_a_compiler_is_told(operator: str, arguments: Any) -> None:
    # Shapes and strides: the default backend checks both when it runs.
    torch.library.opcheck(
        getattr(torch.ops.lightly_collapse, operator).default,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("estimator", ["mom", "mle"])
def test_ldreg_compiles_without_a_graph_break(norm: str, estimator: str) -> None:
    regularizer = LDRegularizer(weight=1.0, k=4, norm=norm, estimator=estimator)
    compiled = torch.compile(regularizer, fullgraph=True, backend="aot_eager")
    views = [torch.randn(12, 6, requires_grad=True) for _ in range(2)]
    expected = torch.autograd.grad(regularizer(*views), views)
    found = torch.autograd.grad(compiled(*views), views)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match="finite"):
        compiled(views[0], views[1] * torch.nan)


@pytest.mark.parametrize("kind", KINDS)
def test_float16_with_a_scaler(kind: str) -> None:
    model = encoder()
    x = torch.randn(4, 3, 9, 9)
    # One for each: kind srip starts at the vectors of its last call.
    once, regularizer = (OrthogonalityRegularizer(model, kind, weight=1e-3) for _ in range(2))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    once().backward()
    expected = model[4].weight.grad.clone()
    optimizer.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    with torch.autocast("cpu", torch.float16):
        loss = 0 * model(x).float().mean() + regularizer()
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.testing.assert_close(model[4].weight.grad, expected, rtol=1e-3, atol=1e-7)
    scaler.step(optimizer)


# --- sharded weights --------------------------------------------------------------------


def shard(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=Path(folder, "rendezvous").as_uri(), rank=rank, world_size=world
    )
    results: dict[str, Any] = {}
    for kind in KINDS:
        for door in ("module", "gradient"):
            model = encoder()
            mesh = init_device_mesh("cpu", (world,))
            for layer in model:
                if list(layer.parameters()):
                    fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            regularizer = OrthogonalityRegularizer(model, kind, weight=0.1, split_qkv=True)
            x = torch.ones(2, 3, 9, 9)
            if door == "module":
                penalty = regularizer()
                (model(x).square().mean() + penalty).backward()
            else:
                model(x).square().mean().backward()
                penalty = 0.1 * regularizer.accumulate_gradient()
            results[f"{kind} {door}"] = (
                penalty.detach(),
                [p.grad.full_tensor() for p in model.parameters()],
            )
    if rank == 0:
        torch.save(results, Path(folder, "results"))
    dist.barrier()
    dist.destroy_process_group()
    try:
        regularizer()
    except ValueError as error:
        Path(folder, f"error{rank}").write_text(str(error))


@pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="torch 2.6 has no FSDP2 on the CPU"
)
@pytest.mark.parametrize("world", [1, 2])
def test_fsdp2(world: int, tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(shard, (world, str(tmp_path)), nprocs=world)
    results = torch.load(tmp_path / "results", weights_only=True)
    for kind in KINDS:
        model = encoder()
        penalty = OrthogonalityRegularizer(model, kind, weight=0.1)()
        (model(torch.ones(2, 3, 9, 9)).square().mean() + penalty).backward()
        for door in ("module", "gradient"):
            value, gradients = results[f"{kind} {door}"]
            torch.testing.assert_close(value, penalty.detach(), rtol=1e-5, atol=0)
            for ours, p in zip(gradients, model.parameters(), strict=True):
                assert isinstance(p.grad, Tensor)
                torch.testing.assert_close(ours, p.grad, rtol=1e-4, atol=1e-6)
    for rank in range(world):
        message = (tmp_path / f"error{rank}").read_text()
        assert message.endswith("0.weight is sharded and torch.distributed is not initialised")
