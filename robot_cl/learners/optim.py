"""Adam over one contiguous buffer, with gradient clipping per member of the population.

The fused kernel behind torch.optim.Adam is called directly: for networks of 64 units the Python around it costs
several times the step itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def cosine(lr: float, step: int, steps: int) -> float:
    """`lr` at step 0, falling to zero at `steps` along half a cosine."""
    return 0.5 * lr * (1.0 + math.cos(math.pi * min(1.0, step / steps)))


class FlatAdam:
    """Adam (Kingma & Ba 2015) for stacked networks; `step` also clears the gradients.

    Remembers the moments (`state`: step (), exp_avg and exp_avg_sq (n,)); `lr` and `clip` may be changed between steps.
    Parameters have leading axis P or a multiple of it (twins) and become views of one buffer: move modules to their
    device before building it. `clip` bounds each member's gradient norm on its own, as a lone member's would be. With
    `clip` given, gradients live in one buffer too, where clipping and stepping are one call each; without, they stay
    where autograd made them, which saves wide networks a copy. A parameter without a gradient is left as it is.
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
        self.before: Callable[[], None] | None = None  # called first by `step`: may add to or change the gradients
        if not self.parameters:
            raise ValueError("there is nothing to train: no parameter requires a gradient")
        self.population, self.clip, self.betas, self.eps = population, clip, betas, eps
        self.flat = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        # On a GPU the kernel reads the rate from the device, so that a captured step follows a schedule.
        self._lr, self._rate = lr, torch.tensor(lr, device=self.flat.device) if self.flat.is_cuda else None
        self._pieces = False
        zeros = torch.zeros_like(self.flat)
        self.state = {"step": zeros.new_zeros(()), "exp_avg": zeros.clone(), "exp_avg_sq": zeros.clone()}
        self._first, self._second = (self._views(self.state[name]) for name in ("exp_avg", "exp_avg_sq"))
        for p, view in zip(self.parameters, self._views(self.flat), strict=True):
            p.data = view
        self._grad = zeros if clip is not None else None
        self._held = self._views(zeros) if clip is not None else []
        for p, view in zip(self.parameters, self._held, strict=False):
            p.grad = view

    @property
    def lr(self) -> float:
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        if lr != self._lr and self._rate is not None:
            self._rate.fill_(lr)
        self._lr = lr

    def by_pieces(self) -> None:
        """From now on as compiled code needs it: parameter by parameter, with a rate that is read at every step."""
        self._rate, self._pieces = torch.tensor(self._lr, device=self.flat.device), True

    @torch.no_grad()
    def step(self) -> None:
        """Clip, step with learning rate `lr`, and clear the gradients."""
        if self.before is not None:
            self.before()
        self.state["step"] += 1.0
        if self._grad is not None:
            if any(p.grad is not view for p, view in zip(self.parameters, self._held, strict=True)):
                raise RuntimeError("gradients were replaced (by zero_grad or a move to a device); FlatAdam owns them")
            if self._pieces:
                self._clip(self._held, None)
                self._adam(list(self.parameters), self._held, self._first, self._second)
                torch._foreach_zero_(self._held)
                return
            self._clip(self._held, self._grad)
            self._adam([self.flat], [self._grad], [self.state["exp_avg"]], [self.state["exp_avg_sq"]])
            self._grad.zero_()
            return
        rows = zip(self.parameters, self._first, self._second, strict=True)
        live = [(p, g, first, second) for p, first, second in rows if (g := p.grad) is not None]
        values, grads, first, second = (list(column) for column in zip(*live, strict=True))
        self._clip(grads, None)
        self._adam(values, grads, first, second)
        for p in self.parameters:
            p.grad = None

    def clear(self) -> None:
        """Forget the gradients."""
        if self._grad is not None:
            self._grad.zero_()
            return
        for p in self.parameters:
            p.grad = None

    def _adam(self, values: list[Tensor], grads: list[Tensor], first: list[Tensor], second: list[Tensor]) -> None:
        rate = self._lr if self._rate is None else self._rate
        torch._fused_adam_(
            values, grads, first, second, [], [self.state["step"]] * len(values),
            lr=rate, beta1=self.betas[0], beta2=self.betas[1], weight_decay=0.0, eps=self.eps,
            amsgrad=False, maximize=False,
        )  # fmt: skip

    def _clip(self, grads: list[Tensor], whole: Tensor | None) -> None:
        """Scale each member's gradient to norm ≤ clip, as torch.nn.utils.clip_grad_norm_ does for a lone one."""
        if self.clip is None:
            return
        if self.population == 1 and whole is not None:
            whole.mul_((self.clip / (whole.norm() + 1e-6)).clamp_(max=1.0))
            return
        rows = [g.view(self.population, -1) for g in grads]
        squares = torch.stack([g.square().sum(1) for g in rows]).sum(0)  # (P,)
        scale = (self.clip / (squares.sqrt() + 1e-6)).clamp_(max=1.0).unsqueeze(1)
        for g in rows:
            g.mul_(scale)

    def _views(self, flat: Tensor) -> list[Tensor]:
        """Pieces of a buffer in the shapes of the parameters."""
        pieces = flat.split([p.numel() for p in self.parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]

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
