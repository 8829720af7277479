"""The loss of every method that Lightly has no benchmark of, by its paper's formula."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, log_softmax, normalize, softmax

from lightly_collapse.io.backbones import BackboneSettings
from lightly_collapse.pretrain import methods
from lightly_collapse.pretrain.methods import ibot

RESNET = BackboneSettings("resnet18", stem="cifar", width=4)
VIT = BackboneSettings("vit_mini", image_size=16, patch_size=4)
N = 8


@pytest.fixture
def make(monkeypatch):
    def make(name, backbone=RESNET, **settings):
        torch.manual_seed(0)
        method = getattr(methods, name)(backbone=backbone, **settings)
        # Momentum encoders that differ from the trained one, and stay as they are.
        monkeypatch.setattr(method, "momentum", lambda *_: 1.0)
        monkeypatch.setattr(type(method), "current_epoch", 5)
        for part in ("momentum_backbone", "momentum_head", "teacher_backbone", "teacher"):
            for weight in getattr(method, part, torch.nn.Identity()).parameters():
                weight.data += 0.05 * torch.randn_like(weight)
        return method, [torch.rand(N, 3, 16, 16) for _ in range(2)]

    return make


def embeddings(method, views):
    return [method.embed(method.encode(view)).detach() for view in views]


@torch.no_grad()
def momentum_embeddings(method, views):
    return [method.momentum_head(method.momentum_backbone(view)) for view in views]


def nearest(queue, rows):
    return queue[(normalize(rows) @ normalize(queue).T).argmax(dim=1)]


def nt_xent(a, b, temperature):
    """Equation 1 of SimCLR, one row after the other."""
    z = normalize(torch.cat([a, b]))
    n = len(a)
    losses = []
    for i in range(2 * n):
        others = [j for j in range(2 * n) if j != i]
        exponents = (z[i] @ z[others].T / temperature).exp()
        losses.append(-(z[i] @ z[(i + n) % (2 * n)] / temperature) + exponents.sum().log())
    return torch.stack(losses).mean()


def test_nnclr_contrasts_predictions_with_the_neighbours_of_the_other_view(make):
    method, views = make("NNCLR", hidden_dim=16, output_dim=8, prediction_dim=16, queue_size=32)
    queue = method.queue.bank.clone()
    z0, z1 = embeddings(method, views)
    p0, p1 = (method.predictor(z) for z in (z0, z1))
    expected = (nt_xent(nearest(queue, z0), p1, 0.1) + nt_xent(nearest(queue, z1), p0, 0.1)) / 2
    torch.testing.assert_close(method.step(views).loss, expected)
    torch.testing.assert_close(method.queue.bank[:N], z1)
    torch.testing.assert_close(method.queue.bank[N:], queue[N:])


def test_nnbyol_looks_both_views_up_before_one_enters_the_queue(make):
    method, views = make("NNBYOL", hidden_dim=16, output_dim=8, queue_size=32)
    queue = method.queue.bank.clone()
    p0, p1 = (method.predictor(z) for z in embeddings(method, views))
    z0, z1 = momentum_embeddings(method, views)
    pairs = ((p0, nearest(queue, z1)), (p1, nearest(queue, z0)))
    expected = sum(2 - 2 * cosine_similarity(p, n).mean() for p, n in pairs)
    torch.testing.assert_close(method.step(views).loss, expected)
    torch.testing.assert_close(method.queue.bank[:N], z0)
    torch.testing.assert_close(method.queue.bank[N:], queue[N:])


def test_tico_adds_the_covariance_of_all_embeddings_so_far(make):
    method, views = make("TiCo", hidden_dim=16, output_dim=8, decay=0.75, covariance=4.0)
    covariance = torch.zeros(8, 8)
    for _ in range(3):
        a = normalize(embeddings(method, views)[0])
        b = normalize(momentum_embeddings(method, views)[1])
        covariance = 0.75 * covariance + 0.25 * a.T @ a / N
        # Algorithm 1: 1 - <a, b> + rho a^T C a.
        expected = (1 - (a * b).sum(dim=1) + 4 * ((a @ covariance) * a).sum(dim=1)).mean()
        torch.testing.assert_close(method.step(views).loss, expected)
        views = [view.roll(1, dims=0) + 0.1 for view in views]


def test_wmse_is_the_distance_of_whitened_embeddings(make):
    method, views = make("WMSE", hidden_dim=16, output_dim=3, whitening_size=N)
    whitened = []
    for z in embeddings(method, views):
        centred = z.double() - z.double().mean(dim=0)
        factor = torch.linalg.cholesky(torch.cov(z.double().T))
        whitened.append(normalize(torch.linalg.solve_triangular(factor, centred.T, upper=False).T))
    expected = (whitened[0] - whitened[1]).square().sum(dim=1).mean()
    torch.testing.assert_close(method.step(views).loss.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output_dim", [4, 16])  # narrower and wider than the batch
def test_frossl_is_invariance_and_the_logarithm_of_the_frobenius_norm(make, output_dim):
    method, views = make("FroSSL", hidden_dim=16, output_dim=output_dim, invariance=1.5)
    z = [normalize(z, dim=0) for z in embeddings(method, views)]
    mean = (z[0] + z[1]) / 2
    # Every view's covariance has trace one; the distance is summed over features.
    entropy = sum(((v.T @ v) / (v.T @ v).trace()).square().sum().log() for v in z)
    distance = sum(2 * (v - mean).square().sum() / N for v in z)
    torch.testing.assert_close(method.step(views).loss, entropy + 1.5 * distance)


def test_mmcr_is_the_nuclear_norm_of_centroids(make):
    method, views = make("MMCR", hidden_dim=16, output_dim=4, compression=0.1)
    rows = embeddings(method, views) + momentum_embeddings(method, views)
    z = normalize(torch.stack(rows, dim=1), dim=2)
    own = sum(torch.linalg.svdvals(image).sum() for image in z) / N
    expected = -torch.linalg.svdvals(z.mean(dim=1)).sum() + 0.1 * own
    torch.testing.assert_close(method.step(views).loss, expected)


def test_lejepa_is_sigreg_and_the_distance_to_the_mean_of_the_views(make):
    method, views = make("LeJEPA", hidden_dim=16, output_dim=4, sigreg=0.25, directions=8)
    z = torch.stack(embeddings(method, views))
    torch.manual_seed(3)
    directions = normalize(torch.randn(4, 8), dim=0)
    t = torch.linspace(-3, 3, 33)
    normal = (-t.square() / 2).exp()
    # Epps and Pulley's statistic along every direction, by the trapezoidal rule.
    phase = (z @ directions)[..., None] * t
    error = (phase.cos().mean(dim=1) - normal).square() + phase.sin().mean(dim=1).square()
    sigreg = (N * torch.trapezoid(error * normal, t)).mean()
    distance = (z - z.mean(dim=0)).square().mean()
    torch.manual_seed(3)
    loss = method.step(views).loss
    torch.testing.assert_close(loss, 0.25 * sigreg + 0.75 * distance)


def test_ibot_adds_the_cross_entropy_of_hidden_patches(make, monkeypatch):
    sizes = {"hidden_dim": 16, "bottleneck_dim": 8, "output_dim": 24, "patch_weight": 0.5}
    sizes["teacher_temperature"] = 0.06
    method, views = make("IBOT", VIT, **sizes)
    hidden = torch.rand(2 * N, 4, 4) < 0.4
    hidden[0] = False
    monkeypatch.setattr(ibot, "random_block_mask", lambda *_, **__: hidden)
    student, teacher = method._masked
    mask = torch.cat([torch.zeros(2 * N, 1, dtype=torch.bool), hidden.flatten(1)], dim=1)
    with torch.no_grad():
        seen = method.teacher(teacher.encode(torch.cat(views)))
        predicted = method.student(student.encode(torch.cat(views), mask=mask))
    entropy = -(softmax(seen / 0.06, -1) * log_softmax(predicted / 0.1, -1)).sum(-1)
    counts = mask.sum(dim=1).clamp(min=1)
    patches = ((entropy * mask).sum(dim=1) / counts).mean()
    other = predicted[:, 0].roll(N, dims=0)
    tokens = -(softmax(seen[:, 0] / 0.06, -1) * log_softmax(other / 0.1, -1)).sum(-1).mean()
    torch.testing.assert_close(method.step(views).loss, tokens + 0.5 * patches)


@pytest.mark.parametrize("backbone", [RESNET, VIT], ids=["resnet", "vit"])
def test_moco_v3_has_the_heads_of_the_official_code(make, backbone):
    method, _ = make("MoCoV3", backbone, hidden_dim=16, output_dim=8)
    norms = [m for m in method.head.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    layers = [m for m in method.head.modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == (2 if backbone is RESNET else 3)
    assert [norm.affine for norm in norms] == [True] * (len(layers) - 1) + [False]
    norms = [m for m in method.predictor.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert [norm.affine for norm in norms] == ([True] if backbone is RESNET else [True, False])
