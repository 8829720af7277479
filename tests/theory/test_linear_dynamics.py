import pytest
import torch

from lightly_collapse.theory import (
    QuarticLandscape,
    implicit_regularization_dynamics,
    strong_augmentation_dynamics,
)
from lightly_collapse.theory.infonce import Network, Settings, Views, train


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_one_step_is_that_of_autograd(count, relu):
    # The loop's closed-form gradient against the loss as one would write it.
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    samples = torch.stack([torch.randn(8, 3, generator=g) for g in generators])
    views = Views(samples, torch.zeros(0, 3), generators)  # no noise, the whole set in one batch
    weights = list(torch.randn(count, 2, 3, 3))
    bias = torch.randn(2, 1, 3)
    settings = Settings(0.5, 0.1, batch_size=8, steps=1, record_every=1, weight_decay=0.03)
    network = Network([weight.clone() for weight in weights], bias.clone(), relu)
    records = train(network, views, settings)

    parameters = [p.clone().requires_grad_() for p in (*weights, bias)]
    z = samples
    for number, weight in enumerate(parameters[:-1], 1):
        z = z @ weight.mT
        z = z.relu() if relu and number < count else z
    z = z + parameters[-1]
    logits = z @ z.mT / 0.5
    loss = -logits.log_softmax(-1).diagonal(dim1=-2, dim2=-1).mean(-1).sum()
    loss = loss + 0.03 * sum(p.square().sum() for p in parameters[:-1])
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient, trained in zip(
        parameters, gradients, [*network.layers, network.bias], strict=True
    ):
        torch.testing.assert_close(trained, parameter.detach() - 0.1 * gradient)
    assert [record.step for record in records] == [0, 1]


def test_growth_matrix_gives_the_gradient():
    generators = [torch.Generator().manual_seed(0)]
    views = Views(torch.randn(1, 16, 3), torch.zeros(0, 3), generators)
    weight = torch.randn(1, 3, 3)
    settings = Settings(0.5, 0.1, batch_size=16, steps=1, record_every=1)
    records = train(Network([weight.clone()]), views, settings)
    torch.testing.assert_close(
        records[1].layers[0], weight + 0.1 * weight @ records[1].growth, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("layers", "relu"), [(4, False), (3, True)])
def test_deeper_and_nonlinear_networks_collapse_too(layers, relu):
    # Appendix C: every layer more leaves fewer dimensions; two linear ones leave 12 of 16.
    run = implicit_regularization_dynamics(
        layers=layers, relu=relu, steps=1500, record_every=500, seeds=[0]
    )
    assert len(run.singular_values) == layers
    assert run.closed_form.shape == (4, 1, 0)
    spectrum = run.spectrum[:, 0]
    assert run.collapsed()[0] >= 6
    # The embedding's covariance from its definition, on the same samples: of the last record.
    if not relu:
        product = torch.linalg.multi_dot([layer[-1, 0] for layer in reversed(run.layers)])
        values = torch.linalg.svdvals(product).square()
        torch.testing.assert_close(spectrum[-1, :4], values[:4], rtol=0.2, atol=0)
    else:
        x = torch.randn(20000, 16, dtype=torch.float64)
        first, second, third = (layer[-1, 0].T for layer in run.layers)
        z = ((x @ first).relu() @ second).relu() @ third
        values = torch.linalg.eigvalsh(z.T.cov()).flip(0)
        torch.testing.assert_close(spectrum[-1, :4], values[:4], rtol=0.2, atol=0)


def test_settings_of_deeper_networks_are_checked():
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        implicit_regularization_dynamics(layers=0)
    with pytest.raises(ValueError, match="spectrum_samples must be at least 2 with ReLUs"):
        implicit_regularization_dynamics(relu=True, spectrum_samples=0)


def test_a_run_depends_on_its_own_seed_alone():
    settings = {"steps": 50, "record_every": 50}
    together = strong_augmentation_dynamics(1.0, seeds=[7, 8], **settings)
    alone = strong_augmentation_dynamics(1.0, seeds=[8], **settings)
    torch.testing.assert_close(together.spectrum[:, 1], alone.spectrum[:, 0], rtol=1e-4, atol=1e-6)
    assert together.spectrum.shape == (2, 2, 16)


# Eigenvalues that the official code gave: largest and smallest of the eight clean dimensions, then
# of the eight noisy ones. A single run; between seeds they move by about a tenth.
_OFFICIAL = {
    0.01: (0.235, 0.132),
    0.5: (0.202, 0.145, 0.103, 0.076),
    1.0: (0.175, 0.126, 0.033, 0.023),
    1.5: (0.179, 0.126, 0.0126, 0.0083),
}


def _check_strong_augmentation(noise: float, seeds: list[int]) -> None:
    run = strong_augmentation_dynamics(noise, seeds=seeds)
    final = run.spectrum[-1]
    expected = _OFFICIAL[noise]
    if len(expected) == 2:
        assert final[:, 0] == pytest.approx(expected[0], rel=0.12)
        assert final[:, -1] == pytest.approx(expected[1], rel=0.12)
        assert run.collapsed().sum() == 0
        return
    clean, noisy = final[:, :8], final[:, 8:]
    assert clean[:, 0] == pytest.approx(expected[0], rel=0.15)
    assert clean[:, -1] == pytest.approx(expected[1], rel=0.12)
    assert noisy[:, 0] == pytest.approx(expected[2], rel=0.12)
    # One noisy dimension may vanish entirely: it started on the wrong side of zero.
    assert noisy[:, -2] == pytest.approx(expected[3], rel=0.15)
    assert (noisy[:, -1] < 1.15 * expected[3]).all()
    # The noisy embedding directions are those of the noisy inputs.
    kept = torch.linalg.svd(run.layers[0][-1]).Vh[:, :8, :8]
    assert torch.linalg.svdvals(kept).min() > 0.98
    # And the landscape says by how much, within a factor 1.5.
    c = torch.cat([torch.zeros(8), torch.full((8,), noise**2)]).diag()
    landscape = QuarticLandscape.from_covariances(torch.eye(16), c)
    spectrum = landscape.clean_spectrum(16, torch.eye(16)).square()
    trained = noisy[:, :7].mean() / clean.mean()
    assert 1 / 1.5 < spectrum[-1] / spectrum[0] / trained < 1.5


def test_strong_augmentation_reproduces_the_official_run():
    _check_strong_augmentation(1.5, [0, 1])


@pytest.mark.slow
@pytest.mark.parametrize("noise", _OFFICIAL)
def test_strong_augmentation_reproduces_the_official_runs(noise):
    _check_strong_augmentation(noise, [0, 1, 2, 3, 4])


def test_implicit_regularization_reproduces_the_official_run():
    run = implicit_regularization_dynamics(seeds=[0, 1])
    final = run.spectrum[-1].log()
    # Official: twelve between -1.60 and -2.05, four collapsed, to -23.3; a thirteenth may make it.
    assert ((final[:, :12] > -2.25) & (final[:, :12] < -1.35)).all()
    assert (final[:, 13:] < -6).all()
    assert (final[:, -1] < -15).all()
    # Of eigenvalues a hundredth is of singular values a tenth.
    assert all(3 <= count <= 4 for count in run.collapsed(rtol=0.1).tolist())
    s = run.spectrum[-1].clamp(min=0).sqrt()
    assert run.collapsed().tolist() == [int((row < 1e-2 * row[0]).sum()) for row in s]
    # The coupled equation, from the start alone: twelve grow up, four lag behind.
    predicted = 4 * run.closed_form[-1, 0].log()
    assert (predicted[:12] > -2.5).all()
    assert (predicted[12:] < -10).all()
    # Layers align: the network's lagging singular directions agree at the end more than at first.
    assert run.alignment is not None
    assert run.alignment.shape == (2, 16, 16)
    torch.testing.assert_close(run.alignment.square().sum(1), torch.ones(2, 16).double())


def test_exponential_solution_holds_while_the_embedding_is_small():
    # Gradient flow dW/dt = W X with X frozen, against training in many small steps.
    run = strong_augmentation_dynamics(
        1.0, dimension=4, noisy_dimensions=2, temperature=20.0, learning_rate=0.05,
        batch_size=512, steps=100, record_every=20, bias=False, seeds=[0],
    )  # fmt: skip
    torch.testing.assert_close(run.closed_form, run.singular_values[0], rtol=0.03, atol=1e-3)
    assert run.singular_values[0][-1, 0, 0] > 1.15 * run.singular_values[0][0, 0, 0]


def test_covariances_of_ones_own():
    a = torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    run = strong_augmentation_dynamics(
        data_covariance=a, augmentation_covariance=torch.diag(torch.tensor([0.0, 9.0, 0.0])),
        width=2, steps=3000, record_every=1000, spectrum_samples=0, seeds=[0],
    )  # fmt: skip
    assert run.spectrum.shape == (4, 1, 2)
    assert run.layers[0].shape == (4, 1, 2, 3)
    right = torch.linalg.svd(run.layers[0][-1, 0, :, :2]).Vh
    assert right[0, 0].abs() > 0.98


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": -1.0}, "noise must not be negative"),
        ({"noisy_dimensions": 17}, r"noisy_dimensions must lie in 0..16, got 17"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"samples": 100}, "batch_size must not exceed the number of samples 100"),
        ({"seeds": []}, "seeds must name"),
        ({"learning_rate": 1e3, "steps": 200}, "learning_rate must be lower: training diverged"),
        ({"width": 0}, "width must be at least 1"),
        ({"spectrum_samples": 1}, "spectrum_samples must be"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"data_covariance": torch.eye(3)}, "augmentation's dimension 16, got 3"),
        ({"data_covariance": -torch.eye(16)}, "data_covariance must be positive semi-definite"),
        ({"augmentation_covariance": torch.ones(2, 3)}, "augmentation_covariance must be a square"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        strong_augmentation_dynamics(**arguments)


def test_bad_settings_of_the_second_experiment_are_named():
    with pytest.raises(ValueError, match="decay must not be negative"):
        implicit_regularization_dynamics(decay=-0.1)
    with pytest.raises(ValueError, match="dimension must be at least 1"):
        implicit_regularization_dynamics(dimension=0)
