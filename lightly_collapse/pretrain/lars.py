"""LARS with a clipped learning rate and without host synchronisation."""

from collections.abc import Callable
from typing import Any

import torch
from lightly.utils import lars
from torch import Tensor


class LARS(lars.LARS):  # type: ignore[misc]
    """Lightly's LARS, with the clipping of its adapted learning rate that published recipes use.

    A decayed weight w with gradient g moves by lr * a * (g + lambda w), where

        a = eta ||w|| / (||g|| + lambda ||w|| + eps),

    or min(a / lr, 1) in place of a where the rate is clipped. Parameters without weight decay
    (biases, normalisation layers) are not adapted, unless their group says `adapt`. Norms of zero
    are handled on the device, so that a step waits for no result.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        momentum: mu.
        weight_decay: lambda.
        trust_coefficient: eta.
        clip_rate: clip a * lr at lr.

    Source: You et al., arXiv 1708.03888; the clipped form is NVIDIA Apex's LARC and solo-learn's.

    Examples:
        >>> layer = torch.nn.Linear(4, 2)
        >>> optimizer = LARS(layer.parameters(), lr=0.1, weight_decay=1e-4, clip_rate=True)
        >>> layer(torch.rand(3, 4)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        clip_rate: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
        )
        self.clip_rate = clip_rate

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of all groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = self._adapted(parameter, group)
                if group["momentum"] != 0:
                    state = self.state[parameter]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = update.clone()
                    else:
                        state["momentum_buffer"].mul_(group["momentum"]).add_(update)
                    update = state["momentum_buffer"]
                parameter.add_(update, alpha=-float(group["lr"]))
        return loss

    def _adapted(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        gradient, decay = parameter.grad, group["weight_decay"]
        assert gradient is not None
        if decay == 0 and not group.get("adapt"):
            return gradient
        weight_norm, gradient_norm = parameter.norm(), gradient.norm()
        rate = group["trust_coefficient"] * weight_norm
        rate = rate / (gradient_norm + decay * weight_norm + group["eps"])
        if self.clip_rate and group["lr"] > 0:
            rate = (rate / group["lr"]).clamp(max=1)
        nonzero = (weight_norm > 0) & (gradient_norm > 0)
        # As Lightly's: where a norm is zero there is neither adaptation nor decay.
        return torch.where(nonzero, (gradient + decay * parameter) * rate, gradient)
