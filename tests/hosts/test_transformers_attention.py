"""transformers keeps queries, keys and values in separate layers: each is a weight of its own."""

import re

import pytest

from lightly_collapse.functional import orthogonality_penalty
from lightly_collapse.loss import OrthogonalityRegularizer

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("split", [False, True])
def test_separate_projections_are_regularized_apart_with_and_without_split_qkv(
    split: bool,
) -> None:
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
    )
    model = transformers.ViTModel(config, add_pooling_layer=False)
    names = ("query", "key", "value", "q_proj", "k_proj", "v_proj")
    weights = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.endswith(".weight") and name.split(".")[-2] in names
    }
    assert len(weights) == 3
    regularizer = OrthogonalityRegularizer(
        model,
        weight=1.0,
        include=[f"^{re.escape(name)}$" for name in weights],
        split_qkv=split,
    )
    expected = sum(float(orthogonality_penalty(w, "so")) for w in weights.values())
    assert float(regularizer()) == pytest.approx(expected, rel=1e-5)
