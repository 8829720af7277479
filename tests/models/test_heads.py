import pytest
import torch
from torch import Tensor

from lightly_collapse.loss import DirectCLRLoss
from lightly_collapse.models import DirectCLRHead
from tests.helpers import gradient, leaf, normal


def test_keeps_the_first_entries_and_their_gradient() -> None:
    x = leaf(normal(5, 9))
    head = DirectCLRHead(dim=4)
    out = head(x)
    assert torch.equal(out, x[:, :4])
    slope = gradient(out.sum(), x)
    assert torch.equal(slope, torch.cat([torch.ones(5, 4), torch.zeros(5, 5)], dim=1).double())
    assert torch.equal(DirectCLRHead(dim=9)(x), x)


def test_has_no_parameters() -> None:
    head = DirectCLRHead()
    assert head.dim == 360
    assert not list(head.parameters())
    assert not head.state_dict()


def test_head_before_the_loss_is_the_loss_of_the_whole() -> None:
    r0, r1 = normal(8, 12), normal(8, 12, seed=1)
    head = DirectCLRHead(dim=5)
    assert DirectCLRLoss(loss_dim=5)(head(r0), head(r1)) == DirectCLRLoss(loss_dim=5)(r0, r1)


@pytest.mark.parametrize(
    "x", [torch.randn(8), torch.randn(2, 8, 8), torch.randn(8, 3), torch.randn(2, 8, 1, 1)]
)
def test_bad_input(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^x must be"):
        DirectCLRHead(dim=4)(x)


def test_bad_dim() -> None:
    for dim in (0, -3):
        with pytest.raises(ValueError, match=r"^dim must be at least 1"):
            DirectCLRHead(dim=dim)
