"""The loss landscape of self-supervised learning with a linear model, solved.

Ziyin, Lubana, Ueda and Tanaka, "What shapes the loss landscape of self-supervised learning?"
(ICLR 2023): to fourth order, contrastive and non-contrastive losses of z = W x are

    L(W) = -Tr[W B W^T] + Tr[W S W^T W S W^T],

S the covariance of the augmented data, B symmetric, fixed by data, augmentation and loss.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightly_collapse.theory._check import check_covariance, check_symmetric

_RANGE = 1e-10  # eigenvalues of S under this times the largest count as zero


class QuarticLandscape:
    r"""L(W) = -Tr[W B W^T] + Tr[W S W^T W S W^T], W of shape (width, D), and all its minima.

    With V = W S^(1/2) and Z = S^(-1/2) B S^(-1/2), every stationary point has
    V^T V = 1/2 P Z P with P a projector onto eigenvectors of Z with positive eigenvalue, and the
    global minimum takes the `width` largest. So the dimensions that vanish are the eigenvectors
    of Z with eigenvalue <= 0 and those beyond the width; every other keeps the variance 1/2 zeta,
    zeta its eigenvalue. There is no bad local minimum.

    **With features normalized** to E|z|^2 = rho (`feature_norm`), the loss is L taken at W scaled
    to Tr[W S W^T] = rho. Then V^T V = 1/2 P (Z - mu) P, the water level mu set by rho: a direction
    survives where zeta > mu, be zeta negative. The origin is no stationary point any more, so
    complete collapse is impossible, but dimensions still vanish where rho is small.

    S may be singular: W does not matter on its null space, where B must then vanish or be
    negative, without a coupling to the rest; the minimum taken here is zero there.

    Args:
        B: shape (D, D), symmetric.
        S: shape (D, D), symmetric and positive semi-definite, not zero.
        feature_norm: rho > 0, the mean squared norm of normalized features; None where features
            are not normalized.

    Attributes:
        B: as given, float64.
        S: as given, float64.
        feature_norm: as given.
        whitened_eigenvalues: zeta, eigenvalues of Z on the range of S, descending, shape (r,).
        whitened_directions: eigenvectors of Z, one a row, in the coordinates S^(-1/2) x, (r, D).
        patterns: S^(1/2) u for each eigenvector u, one a row, shape (r, D): how the data moves
            along that direction; W of the minimum maps the pattern of a vanished one to zero.
        filters: S^(-1/2) u, one a row, shape (r, D): the linear feature that reads it off.

    Raises:
        ValueError: if a matrix is not symmetric, S not positive semi-definite or zero, the shapes
            differ, B is not negative or uncoupled on the null space of S (no minimum exists, or
            none of this form), or `feature_norm` is not positive.

    Examples:
        >>> B, S = torch.diag(torch.tensor([1.0, 1.0, -0.5])), torch.diag(torch.tensor([1.0, 2, 1]))
        >>> landscape = QuarticLandscape(B, S)
        >>> [round(zeta, 6) for zeta in landscape.whitened_eigenvalues.tolist()]
        [1.0, 0.5, -0.5]
        >>> landscape.collapsed_directions(width=3).abs().tolist()
        [[0.0, 0.0, 1.0]]
        >>> W = landscape.global_minimum(width=3)
        >>> round(landscape.loss(W).item(), 6)  # -1/4 (1^2 + 0.5^2)
        -0.3125
    """

    def __init__(self, B: Tensor, S: Tensor, feature_norm: float | None = None) -> None:
        self.B = check_symmetric(B, "B")
        self.S = check_covariance(S, "S")
        if self.B.shape != self.S.shape:
            raise ValueError(
                f"B and S must have the same shape, got {tuple(B.shape)} and {tuple(S.shape)}"
            )
        if feature_norm is not None and not 0 < feature_norm < math.inf:
            raise ValueError(f"feature_norm must be positive and finite, got {feature_norm}")
        self.feature_norm = feature_norm
        values, vectors = torch.linalg.eigh(self.S)
        if not values[-1] > 0:
            raise ValueError("S must not be zero")
        kept = values > _RANGE * values[-1]
        self._check_null_space(vectors[:, kept], vectors[:, ~kept])
        # Whitening kept as a (r, D) matrix: Z's r x r form has no eigenvector outside the range.
        whitening = vectors[:, kept].T / values[kept].sqrt()[:, None]
        self._null = vectors[:, ~kept].T
        zeta, u = torch.linalg.eigh(whitening @ self.B @ whitening.T)
        self.whitened_eigenvalues = zeta.flip(0)
        u = u.flip(1).T
        self.whitened_directions = u @ vectors[:, kept].T
        self.patterns = u @ (vectors[:, kept] * values[kept].sqrt()).T
        self.filters = u @ whitening

    def _check_null_space(self, inside: Tensor, outside: Tensor) -> None:
        if outside.shape[1] == 0:
            return
        scale = 1e-6 * self.B.abs().max()
        if (outside.T @ self.B @ inside).abs().max() > scale:
            raise ValueError("B must not couple the null space of S with its range, but it does")
        largest = torch.linalg.eigvalsh(outside.T @ self.B @ outside)[-1]
        if largest > scale:
            raise ValueError(
                f"B must not be positive on the null space of S (the loss has no minimum), got an "
                f"eigenvalue {largest.item():.3g} there"
            )

    @classmethod
    def from_covariances(
        cls,
        data: Tensor,
        augmentation: Tensor,
        *,
        weight_decay: float = 0.0,
        invariance: float = 0.0,
        feature_norm: float | None = None,
        mean: Tensor | None = None,
        bias: bool = False,
    ) -> "QuarticLandscape":
        """The landscape of data with covariance A0 and augmentation with covariance C.

        B = A0 - kappa C - g I and S = A0 + C. InfoNCE with temperature t is, to fourth order,
        2 L at W = W' / sqrt(2 t); the spectral contrastive loss -2 E z.z' + E (z.w)^2 is exactly
        4 L at W = W' / sqrt(2), W' being the network's weight in both. A term g' |W'|^2 added to
        the loss is g = t g' here for InfoNCE and g = g' / 2 for the spectral contrastive loss.

        Args:
            data: A0, covariance of the clean data (between images), shape (D, D). An estimate
                with slightly negative eigenvalues will do.
            augmentation: C, covariance of the augmentation (between views), shape (D, D).
            weight_decay: g in the term g |W|^2 added to L; kills where the signal is under g.
                Normalized features do not see it (|W| shrinks at no cost), so it is left out then.
            invariance: kappa, how many times more the loss weighs invariance.
            feature_norm: rho, mean squared norm of normalized features, for W; for InfoNCE on
                the unit sphere at temperature t it is 1 / (2 t).
            mean: m, the mean of the data, shape (D,), for a loss that sees it, such as the
                spectral contrastive one, whose covariances are second moments. Leave it out where
                the data are centred, and for InfoNCE with a bias, which centres by itself.
            bias: whether the model has one. W then has D + 1 columns, the bias the last and free
                of weight decay. Needs `mean`.

        Returns:
            The landscape.

        Raises:
            ValueError: as the class; if `weight_decay` or `invariance` is negative; if `mean` has
                a wrong shape or `bias` comes without it.

        Examples:
            >>> clean, noise = torch.eye(2), torch.diag(torch.tensor([0.0, 1.0]))
            >>> landscape = QuarticLandscape.from_covariances(clean, noise)
            >>> [round(zeta, 6) for zeta in landscape.whitened_eigenvalues.tolist()]
            [1.0, 0.5]
        """
        data = check_symmetric(data, "data")
        augmentation = check_covariance(augmentation, "augmentation")
        if data.shape != augmentation.shape:
            raise ValueError(
                f"data and augmentation must have the same shape, got {tuple(data.shape)} and "
                f"{tuple(augmentation.shape)}"
            )
        for name, value in (("weight_decay", weight_decay), ("invariance", invariance)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must not be negative, got {value}")
        if bias and mean is None:
            raise ValueError("bias changes nothing on centred data: give the mean too")
        decay = (0.0 if feature_norm is not None else weight_decay) * torch.eye(len(data)).double()
        S = data + augmentation
        B = data - invariance * augmentation - decay
        if mean is not None:
            if mean.shape != data.shape[:1]:
                raise ValueError(f"mean must have shape ({len(data)},), got {tuple(mean.shape)}")
            m = mean.double()
            B, S = B + m.outer(m), S + m.outer(m)
            if bias:
                corner, one = m[:, None], torch.ones(1, 1, dtype=torch.float64)
                B, S = (
                    torch.cat([torch.cat([x, corner], 1), torch.cat([corner.T, one], 1)])
                    for x in (B, S)
                )
        return cls(B, S, feature_norm)

    @classmethod
    def from_mixture(
        cls,
        means: Tensor,
        frequencies: Tensor,
        augmentation: Tensor,
        *,
        within: Tensor | None = None,
        weight_decay: float = 0.0,
        invariance: float = 0.0,
        feature_norm: float | None = None,
    ) -> "QuarticLandscape":
        """The landscape of a mixture of classes that need not be equally frequent.

        A0 = sum_k p_k (m_k - m)(m_k - m)^T + within, m the mean of all.

        Args:
            means: m_k, one class a row, shape (K, D).
            frequencies: p_k, shape (K,), not negative; scaled to sum 1.
            augmentation: C, shape (D, D).
            within: covariance of the clean data within a class, shape (D, D); zero by default.
            weight_decay: as in `from_covariances`.
            invariance: as in `from_covariances`.
            feature_norm: as in `from_covariances`.

        Returns:
            The landscape.

        Raises:
            ValueError: as `from_covariances`, or if frequencies are negative or all zero.

        Examples:
            >>> means = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 5.0]])
            >>> rare = QuarticLandscape.from_mixture(
            ...     means, torch.tensor([0.5, 0.49, 0.01]), 0.01 * torch.eye(2)
            ... )
            >>> bool(rare.whitened_eigenvalues.min() > 0.9)  # one image in a hundred is enough
            True
        """
        if means.ndim != 2 or frequencies.shape != means.shape[:1]:
            raise ValueError(
                f"means and frequencies must have shapes (K, D) and (K,), got "
                f"{tuple(means.shape)} and {tuple(frequencies.shape)}"
            )
        p = frequencies.double()
        if not (p.isfinite().all() and (p >= 0).all() and p.sum() > 0):
            raise ValueError("frequencies must be finite, not negative and not all zero")
        p = p / p.sum()
        centered = means.double() - p @ means.double()
        data = centered.T @ (p[:, None] * centered)
        if within is not None:
            data = data + check_covariance(within, "within")
        return cls.from_covariances(
            data,
            augmentation,
            weight_decay=weight_decay,
            invariance=invariance,
            feature_norm=feature_norm,
        )

    def loss(self, W: Tensor) -> Tensor:
        """L(W), a scalar; W of shape (width, D). Differentiable by autograd too."""
        W = self._scaled(self._check_weight(W))
        return ((W @ self.S @ W.T).square().sum()) - (W @ self.B * W).sum()

    def gradient(self, W: Tensor) -> Tensor:
        """dL/dW = -2 W B + 4 W S W^T W S in closed form, shape (width, D).

        With normalized features, the gradient of L(s W), s = sqrt(rho / Tr[W S W^T]).
        """
        W = self._check_weight(W)
        scaled = self._scaled(W)
        SW = scaled @ self.S
        gradient: Tensor = 4 * (SW @ scaled.T) @ SW - 2 * scaled @ self.B
        if self.feature_norm is None:
            return gradient
        tangent = gradient - SW * ((gradient * scaled).sum() / self.feature_norm)
        return tangent * (self.feature_norm / (W @ self.S * W).sum()).sqrt()

    def _check_weight(self, W: Tensor) -> Tensor:
        if W.ndim != 2 or W.shape[0] < 1 or W.shape[1] != len(self.S):
            raise ValueError(f"W must have shape (width, {len(self.S)}), got {tuple(W.shape)}")
        return W.double()

    def _scaled(self, W: Tensor) -> Tensor:
        if self.feature_norm is None:
            return W
        power = (W @ self.S * W).sum()
        if not power > 0:
            raise ValueError("W must not vanish on the data: its features cannot be normalized")
        return W * (self.feature_norm / power).sqrt()

    def kept(self, width: int) -> list[int]:
        """Which eigenvectors of Z the global minimum keeps, as indices into the eigenvalues."""
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        zeta = self.whitened_eigenvalues[:width]
        if self.feature_norm is None:
            # Rounding must not bring a dimension to life.
            floor = 1e-9 * self.whitened_eigenvalues.abs().max()
            return list(range(int((zeta > floor).sum())))
        ranks = torch.arange(1, len(zeta) + 1, dtype=torch.float64)
        level = (zeta.cumsum(0) - 2 * self.feature_norm) / ranks
        return list(range(int((zeta > level).sum())))

    def eigenvalues(self, width: int) -> Tensor:
        """Eigenvalues of the embedding covariance W S W^T at the global minimum, (r,), descending.

        Entry k belongs to `whitened_eigenvalues[k]`; those that vanish are 0.
        """
        return self._kept_eigenvalues(self.kept(width))

    def _kept_eigenvalues(self, kept: Sequence[int]) -> Tensor:
        result = torch.zeros_like(self.whitened_eigenvalues)
        index = torch.tensor(sorted(kept), dtype=torch.long)
        zeta = self.whitened_eigenvalues[index]
        level = 0.0
        if self.feature_norm is not None:
            level = ((zeta.sum() - 2 * self.feature_norm) / len(index)).item()
        result[index] = (zeta - level) / 2
        return result

    def stationary_point(self, kept: Sequence[int], width: int) -> Tensor:
        """The stationary point that keeps the named eigenvectors of Z, shape (width, D).

        Args:
            kept: indices into `whitened_eigenvalues`, at most `width`, each once.
            width: d, dimension of the embedding.

        Returns:
            W; one row for each kept eigenvector, in order, zeros below. Any rotation of the
            rows is stationary too.

        Raises:
            ValueError: if an index is out of range or repeated, there are more than `width`, an
                eigenvalue lies at or under the water level (0 unless features are normalized), or
                none is named with normalized features.
        """
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        count = len(self.whitened_eigenvalues)
        if len(set(kept)) != len(kept) or any(not 0 <= k < count for k in kept):
            raise ValueError(
                f"kept must name each index at most once in 0..{count - 1}, got {kept}"
            )
        if len(kept) > width:
            raise ValueError(f"kept must name at most width = {width} indices, got {len(kept)}")
        if not kept and self.feature_norm is not None:
            raise ValueError("kept must name an index: normalized features cannot all vanish")
        values = self._kept_eigenvalues(kept) if kept else self.whitened_eigenvalues[:0]
        order = sorted(kept)
        if any(values[k] <= 0 for k in order):
            raise ValueError("kept must name eigenvalues above the water level only")
        W = torch.zeros(width, len(self.S), dtype=torch.float64)
        for row, k in enumerate(order):
            W[row] = values[k].sqrt() * self.filters[k]
        return W

    def global_minimum(self, width: int) -> Tensor:
        """W of the global minimum, shape (width, D), up to a rotation of its rows."""
        return self.stationary_point(self.kept(width), width)

    def minimum_loss(self, width: int) -> float:
        """The loss at the global minimum: -1/4 sum zeta^2 over the kept directions."""
        values = self.eigenvalues(width)
        return float((values.square() - values * self.whitened_eigenvalues).sum())

    def rank(self, width: int) -> int:
        """Rank of the global minimum: how many dimensions of the embedding do not vanish."""
        return len(self.kept(width))

    def collapsed_directions(self, width: int) -> Tensor:
        """Input directions that the global minimum maps to zero, unit vectors, one a row.

        Shape (D - rank, D). First the patterns S^(1/2) u of the vanished eigenvectors, by falling
        eigenvalue, then the null space of S, in which the data do not move at all. Together they
        span the null space of W; they need not be orthogonal.
        """
        vanished = self.patterns[self.rank(width) :]
        vanished = vanished / vanished.norm(dim=1, keepdim=True)
        return torch.cat([vanished, self._null])

    def escape_rates(self) -> Tensor:
        """Rates 2 beta at which gradient flow leaves the origin, (D,), descending.

        The Hessian at W = 0 has the eigenvalues -2 beta, beta those of B, each as often as the
        width: positive rates grow like exp(2 beta t), a landscape without any is collapsed
        completely. Raises ValueError with normalized features, which never are at the origin.
        """
        if self.feature_norm is not None:
            raise ValueError("feature_norm keeps the features from the origin: no escape from it")
        return 2 * torch.linalg.eigvalsh(self.B).flip(0)

    def clean_spectrum(self, width: int, data: Tensor) -> Tensor:
        """Singular values of the clean embedding at the global minimum, (width,), descending.

        Square roots of the eigenvalues of W A0 W^T, A0 = `data` of shape (D, D); padded with 0
        where the width exceeds what there is.
        """
        W = self.global_minimum(width)
        values: Tensor = torch.linalg.eigvalsh(W @ check_symmetric(data, "data") @ W.T).flip(0)
        return values.clamp(min=0).sqrt()
