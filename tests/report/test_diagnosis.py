"""The four answers of a diagnosis, each against a network of which the answer is known."""

import json
from dataclasses import replace

import pytest
import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import nn
from torchvision.transforms import Compose

from lightly_collapse.report import diagnose
from lightly_collapse.report.diagnosis import Training, conclude
from lightly_collapse.report.diagnosis.evidence import (
    Agreement,
    ViewsEvidence,
    agreement,
    distinct_images,
)
from tests.helpers import normal

IMAGES = torch.rand(160, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TRAINING = Training(method="SimCLR", optimizer="adamw", learning_rate=1e-3, weight_decay=0.1)


def encoder(width=16):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, width), nn.ReLU()
    )


def diagnosed(model, **settings):
    images = settings.pop("images", IMAGES)
    settings = {"untrained": encoder(), "head": nn.Linear(16, 16), "lid_k": 5, **settings}
    return diagnose(model, images.split(40), **settings)


def scaled(model, factor):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    return model


class TestAgreement:
    def test_of_equal_views(self):
        assert agreement(normal(50, 1, 8).expand(-1, 3, -1)).matched == 1.0
        assert agreement(normal(50, 1, 8).expand(-1, 3, -1)).signal == 1.0

    def test_of_views_without_anything_in_common(self):
        found = agreement(normal(2000, 2, 4))
        assert found.signal < 0.05
        assert found.matched < 5 * found.chance

    def test_the_share_between_images_is_the_ratio_of_the_variances(self):
        views = 3.0 * normal(5000, 1, 6) + normal(5000, 2, 6, seed=1)
        assert agreement(views).signal == pytest.approx(9 / 10, abs=0.01)

    def test_a_constant_agrees_in_nothing(self):
        found = agreement(torch.ones(20, 2, 4))
        assert (found.signal, found.matched) == (0.0, 0.0)

    def test_values_that_are_not_finite(self):
        views = normal(20, 2, 4)
        views[0] = torch.nan
        assert 0 <= agreement(views).signal <= 1


class TestStates:
    def test_a_random_network_has_nothing_to_mend(self):
        found = diagnosed(encoder(), training=TRAINING)
        assert found.verdict.state == "none"
        assert found.cause is None
        assert found.remedies == []
        assert found.place.layer == ""
        assert "Nothing to mend" in found.lines()[-1]

    def test_a_constant(self):
        model = encoder()
        with torch.no_grad():
            model[3].weight.mul_(1e-4)
            model[3].bias.fill_(1.0)
        found = diagnosed(model, training=TRAINING)
        assert found.verdict.state == "complete"
        assert found.place.layer in ("3", "output")

    def test_lost_dimensions_and_the_weight_that_lost_them(self):
        model = encoder()
        with torch.no_grad():
            u, s, v = torch.linalg.svd(model[3].weight, full_matrices=False)
            s[6:] = 1e-6
            model[3].weight.copy_((u * s) @ v)
        untrained = encoder()[:4]
        found = diagnosed(model[:4], untrained=untrained, training=TRAINING)
        assert found.verdict.state == "dimensional"
        assert found.place.layer == "3"
        assert found.place.kind == "weight"
        assert "weights" in {cause.name for cause in found.causes if cause.found}
        low, high = found.evidence.report.output.intervals["effective_rank"]
        # About the value without the bias of few rows, hence not quite about the value itself.
        assert low < high
        rank = found.evidence.report.output.scalars["effective_rank"]
        assert (low + high) / 2 == pytest.approx(rank, rel=0.05)

    def test_too_few_images_to_tell(self):
        model = encoder()[:4]
        with torch.no_grad():
            model[3].weight[2:] *= 1e-3
            model[3].bias.zero_()
        found = diagnosed(model, images=IMAGES[:12], untrained=encoder()[:4], training=TRAINING)
        assert found.verdict.state == "unclear"
        assert found.cause.name == "samples"
        assert "12 images are too few for 16 dimensions" in found.verdict.sentences[-1]

    def test_rows_that_are_not_finite(self):
        model = encoder()
        model[3].bias.data[0] = torch.nan
        found = diagnosed(model[:4], untrained=encoder()[:4], training=TRAINING)
        assert found.verdict.state == "complete"
        assert found.cause.name == "learning_rate"


class TestCauses:
    def test_norms(self):
        constant = scaled(encoder(), 1e-3)
        constant[3].bias.data.fill_(1.0)
        found = diagnosed(constant, training=TRAINING)
        assert found.cause.name == "weight_decay"
        assert found.remedies[0].settings == {
            "model": {"init_args": {"optimizer": {"weight_decay": 1e-4}}}
        }
        grown = scaled(encoder(), 100.0)
        grown[3].bias.data.fill_(1e7)
        found = diagnosed(grown, training=TRAINING)
        assert found.cause.name == "learning_rate"
        assert found.remedies[0].settings["model"]["init_args"]["optimizer"] == {
            "learning_rate": 1e-4
        }

    @pytest.mark.parametrize(
        ("factor", "cause"), [(0.1, "weight_decay"), (10.0, "learning_rate"), (0.5, None)]
    )
    def test_norms_that_are_far_off_count_where_a_third_of_the_rank_is_lost(self, factor, cause):
        sound = diagnosed(encoder(), training=TRAINING)
        rank = sound.evidence.report.output.scalars["effective_rank"]
        for share, expected in ((0.68, None), (0.65, cause)):
            report = sound.evidence.report
            layer = replace(report.output, scalars=report.output.scalars | {
                "effective_rank": share * rank
            })  # fmt: skip
            evidence = replace(
                sound.evidence,
                report=replace(report, layers=[layer, *report.layers[1:]]),
                norm_ratios=dict.fromkeys(sound.evidence.norm_ratios, factor),
            )
            found = conclude(evidence, "a")
            assert found.verdict.state == "none"
            assert (found.cause and found.cause.name) == expected

    def test_a_training_that_ended_itself(self):
        known = replace(TRAINING, diverged="SimCLR: the loss is nan at step 3 of epoch 1")
        found = diagnosed(encoder(), training=known)
        assert found.cause.name == "learning_rate"
        assert "the loss is nan at step 3 of epoch 1" in found.cause.measured

    def test_dead_units(self):
        model = encoder()
        model[3].bias.data[:12] = -100.0
        found = diagnosed(model, training=TRAINING)
        assert found.cause.name == "dead_units"
        assert found.cause.detail == "4"
        assert "75 %" in found.cause.measured

    def test_duplicates(self):
        copies = IMAGES[:4].repeat(40, 1, 1, 1)
        assert distinct_images(copies) == (160, 4)
        found = diagnosed(encoder(), dataset=copies, training=TRAINING)
        assert found.cause.name == "duplicates"
        assert diagnosed(encoder(), dataset=IMAGES, training=TRAINING).cause is None

    def test_a_missing_projector_is_named(self):
        model = encoder()
        with torch.no_grad():
            model[3].weight[4:] = 0.0
            model[3].bias[4:] = 0.0
        found = diagnosed(model[:4], untrained=encoder()[:4], head=nn.Identity(), training=TRAINING)
        assert found.verdict.state == "dimensional"
        assert (found.cause.name, found.cause.detail) == ("projector", "missing")

    def test_a_low_rank_projector(self):
        model = encoder()[:4]
        with torch.no_grad():
            model[3].weight[4:] = 0.0
            model[3].bias[4:] = 0.0
        found = diagnosed(model, untrained=encoder()[:4], head=nn.Linear(16, 1))
        assert (found.cause.name, found.cause.detail) == ("projector", "low rank")

    def test_a_constant_without_another_cause_is_the_objective(self):
        model = encoder()
        model[3].bias.data.fill_(1e4)
        found = diagnosed(model, training=TRAINING)
        assert found.cause.name == "objective"

    @pytest.mark.parametrize(("noise", "found"), [(0.05, None), (10.0, "augmentation")])
    def test_the_augmentation_that_drowns_the_images_is_named(self, noise, found):
        def gaussian(x):
            return x + noise * torch.randn_like(x)

        def brightness(x):
            return x * (0.9 + 0.2 * torch.rand(1))

        transform = MultiViewTransform([Compose([brightness, gaussian])] * 2)
        diagnosis = diagnosed(
            encoder(), dataset=IMAGES, transform=transform, training=TRAINING, n_images=100
        )
        cause = diagnosis.cause
        assert (cause.name if cause else None) == found
        if cause is not None:
            assert cause.detail == "gaussian"
            assert diagnosis.evidence.views.left_out["gaussian"].matched > 0.9

    @pytest.mark.parametrize(
        ("stronger", "matched", "without_noise", "blamed", "found"),
        [
            (None, 0.05, 0.3, "crop", True),  # nothing known: what takes most
            (("noise",), 0.05, 0.3, "noise", True),  # the unusual step, where its loss is enough
            (("noise",), 0.05, 0.1, "crop", True),
            (("noise", "crop"), 0.05, 0.3, "crop", True),
            (("noise",), 0.25, 0.36, "noise", True),  # no published views have noise
            (("noise",), 0.39, 0.46, "crop", False),  # mild noise
            (("crop",), 0.25, 0.3, "crop", False),  # every crop makes views differ
            ((), 0.25, 0.36, "crop", False),
        ],
    )
    def test_of_two_steps_the_unusual_one_is_to_blame(
        self, stronger, matched, without_noise, blamed, found
    ):
        def of(matched):
            return Agreement(signal=0.5, matched=matched, chance=0.004)

        left_out = {"crop": of(0.5), "noise": of(without_noise)}
        views = ViewsEvidence(of(matched), of(0.01), of(0.02), left_out)
        evidence = replace(
            diagnosed(encoder(), training=TRAINING).evidence,
            views=views,
            training=replace(TRAINING, stronger_steps=stronger),
        )
        cause = next(c for c in conclude(evidence, "a").causes if c.name == "augmentation")
        assert (cause.detail, cause.found) == (blamed, found)
        assert f"Without {blamed} it would be" in cause.measured

    def test_published_views_are_no_cause_of_their_own(self):
        def drowned(x):
            return torch.randn_like(x)

        views = {"dataset": IMAGES, "transform": MultiViewTransform([drowned] * 2)}
        evidence = diagnosed(encoder(), **views, training=TRAINING, n_images=100).evidence
        usual = replace(evidence.training, stronger_steps=())
        assert conclude(evidence, "a").cause.name == "augmentation"
        kept = conclude(replace(evidence, training=usual), "a")
        assert kept.cause is None
        assert any("published views of SimCLR" in cause.measured for cause in kept.causes)
        collapsed = encoder()
        collapsed[3].weight.data[1:] = 0
        collapsed[3].bias.data.zero_()
        evidence = diagnosed(collapsed, **views, training=usual, n_images=100).evidence
        assert "augmentation" in [c.name for c in conclude(evidence, "a").causes if c.found]


def test_page_and_file_escape_and_hold_what_was_found(tmp_path):
    model = encoder()
    model[3].bias.data[:12] = -100.0
    found = diagnosed(model, training=TRAINING, name="<b>run</b>")
    found.to_html(tmp_path / "a.html")
    found.save(tmp_path / "a.json")
    page = (tmp_path / "a.html").read_text()
    assert "<b>run</b>" not in page
    assert "most units of a layer are dead" in page
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["causes"][0]["name"] == "dead_units"
    assert record["format"] == "lightly-collapse diagnosis 1"


def test_the_model_is_left_as_it_was():
    model = encoder().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    diagnosed(model, dataset=IMAGES)
    assert model.training
    assert not model._forward_hooks
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


def test_a_transform_needs_images():
    with pytest.raises(ValueError, match="give dataset too"):
        diagnosed(encoder(), transform=lambda x: [x, x])
