"""The five kinds of linear projector."""

import pytest
import torch

from lightly_collapse.models import DirectCLRHead, LinearProjectionHead

KINDS = ("linear", "orthogonal", "diagonal", "low_rank", "low_rank_diagonal")
X = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))


def matrix(head: LinearProjectionHead) -> torch.Tensor:
    return head(torch.eye(head.input_dim)).detach().T


@pytest.mark.parametrize("kind", KINDS)
def test_is_linear_and_learns_only_what_it_says(kind: str) -> None:
    head = LinearProjectionHead(12, 5, kind)
    assert head(X).shape == (9, 5)
    torch.testing.assert_close(head(X), X @ matrix(head).T)
    parameters = sum(p.numel() for p in head.parameters())
    assert (parameters > 0) == (kind in ("linear", "orthogonal", "diagonal"))
    twin = LinearProjectionHead(12, 5, kind)
    twin.load_state_dict(head.state_dict())
    torch.testing.assert_close(twin(X), head(X))


@pytest.mark.parametrize(("width", "side"), [(5, "rows"), (12, "rows"), (20, "columns")])
def test_orthogonal_stays_orthogonal(width: int, side: str) -> None:
    head = LinearProjectionHead(12, width, "orthogonal")
    optimizer = torch.optim.SGD(head.parameters(), 0.5)
    before = matrix(head)
    for _ in range(5):
        optimizer.zero_grad()
        head(X).pow(3).mean().backward()
        optimizer.step()
    w = matrix(head)
    assert not torch.allclose(w, before)
    g = w @ w.T if side == "rows" else w.T @ w
    torch.testing.assert_close(g, torch.eye(len(g)), rtol=0, atol=1e-5)


def test_diagonal_and_low_rank() -> None:
    diagonal = LinearProjectionHead(12, 5, "diagonal")
    torch.testing.assert_close(diagonal(X), X[:, :5])
    (p,) = diagonal.parameters()
    torch.nn.init.uniform_(p)
    torch.testing.assert_close(matrix(diagonal), torch.diag(p.detach())[:, :5] @ torch.eye(5, 12))
    w = matrix(LinearProjectionHead(12, 5, "low_rank"))
    torch.testing.assert_close(w @ w.T, torch.eye(5), rtol=0, atol=1e-5)
    cut = LinearProjectionHead(12, 5, "low_rank_diagonal")
    assert torch.equal(cut(X), DirectCLRHead(5)(X))
    assert cut.state_dict() == {}


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"^kind must be one of linear, .*got 'cubic'"):
        LinearProjectionHead(12, 5, "cubic")
    with pytest.raises(ValueError, match=r"^input_dim and output_dim must be at least 1, got 12"):
        LinearProjectionHead(12, 0)
    with pytest.raises(ValueError, match=r"^output_dim must be at most input_dim, 12, .* got 13"):
        LinearProjectionHead(12, 13, "diagonal")
    head = LinearProjectionHead(12, 5)
    for x in (torch.randn(12), torch.randn(3, 11), torch.randn(2, 3, 12)):
        with pytest.raises(ValueError, match=r"^x must be \(samples, 12 features\), got shape"):
            head(x)
