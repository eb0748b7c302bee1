"""Adam over one contiguous buffer, with gradient clipping per member of the population.

The fused kernel behind torch.optim.Adam is called directly: for networks of 64 units the Python around it costs
several times the step itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class FlatAdam:
    """Adam (Kingma & Ba 2015) whose parameters are views of one buffer: a step is one fused kernel.

    Remembers the moments and the step count. Parameters have leading axis P or a multiple of it (twins), and keep
    their gradient tensors for life: `step` zeroes them, nothing else may replace them. Move modules to their device
    before building it. `clip` bounds each member's gradient norm on its own, as a lone member's would be.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        population: int,
        lr: float,
        clip: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        self.parameters = [p for p in parameters if p.requires_grad]
        if not self.parameters:
            raise ValueError("there is nothing to train: no parameter requires a gradient")
        self.population, self.clip, self.lr, self.betas, self.eps = population, clip, lr, betas, eps
        self.flat = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        grad = torch.zeros_like(self.flat)
        start = 0
        for p in self.parameters:
            piece = slice(start, start + p.numel())
            p.data = self.flat[piece].view(p.shape)
            p.grad = grad[piece].view(p.shape)
            start += p.numel()
        self._grads = [p.grad for p in self.parameters]
        self._by_member = [g.view(population, -1) for g in self._grads if g is not None]
        self.grad = grad
        self.state = {
            "step": torch.zeros((), device=grad.device),
            "exp_avg": torch.zeros_like(grad),
            "exp_avg_sq": torch.zeros_like(grad),
        }

    @torch.no_grad()
    def step(self) -> None:
        """Clip, step with learning rate `lr`, and zero the gradients."""
        if any(p.grad is not g for p, g in zip(self.parameters, self._grads, strict=True)):
            raise RuntimeError("gradients were replaced (zero_grad or a move to another device); FlatAdam owns them")
        if self.clip is not None:
            self._clip(self.clip)
        self.state["step"] += 1.0
        torch._fused_adam_(
            [self.flat], [self.grad], [self.state["exp_avg"]], [self.state["exp_avg_sq"]], [], [self.state["step"]],
            lr=self.lr, beta1=self.betas[0], beta2=self.betas[1], weight_decay=0.0, eps=self.eps,
            amsgrad=False, maximize=False,
        )  # fmt: skip
        self.grad.zero_()

    def _clip(self, bound: float) -> None:
        """Scale each member's gradient to norm ≤ bound, as torch.nn.utils.clip_grad_norm_ does for a lone one."""
        if self.population == 1:
            self.grad.mul_((bound / (self.grad.norm() + 1e-6)).clamp_(max=1.0))
            return
        squares = torch.stack([g.square().sum(1) for g in self._by_member]).sum(0)  # (P,)
        scale = (bound / (squares.sqrt() + 1e-6)).clamp_(max=1.0).unsqueeze(1)
        for g in self._by_member:
            g.mul_(scale)

    def state_dict(self) -> dict[str, Tensor]:
        """step (), exp_avg and exp_avg_sq (n,)."""
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError if the state is of other parameters."""
        for name, mine in self.state.items():
            if name not in state or state[name].shape != mine.shape:
                has = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(f"optimiser state {name} is {has}, these parameters need {tuple(mine.shape)}")
            mine.copy_(state[name])
