"""Replay: good actions of old tasks are imitated while the new one is learned."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from robot_cl.batch import Transitions
from robot_cl.continual.actors import State
from robot_cl.continual.methods.clonex import ClonEx
from robot_cl.learners.base import Learner
from robot_cl.learners.ppo import PPO


class Replay(ClonEx):
    """Experience replay for an on-policy learner: + λ Σ_old E[−w log π(a|s)] on stored transitions, a head per task.

    Rolnick et al. 2019 (CLEAR) clone the actions in the buffer; here, as in self-imitation (Oh et al. 2018), better
    actions weigh more: w = exp(min(advantage, 1)) where the learner estimates advantages, else 1.
    """

    def memory_loss(self, learner: Learner, j: int, batch: State) -> Tensor:
        mean, log_std = functional_call(learner.actor, self.head[j], (batch["obs"],))
        log_prob = learner.actor.log_prob(mean, log_std.detach(), batch["action"])
        return -self.config.replay * (batch["weight"] * log_prob).mean(-1).sum()

    @torch.no_grad()
    def remember(self, learner: Learner, fresh: Transitions) -> State:
        n = self.config.memory
        kept = {"obs": fresh.obs.flatten(1, 2)[:, :n].clone(), "action": fresh.action.flatten(1, 2)[:, :n].clone()}
        weight = torch.ones_like(kept["obs"][..., 0])
        if isinstance(learner, PPO):
            advantage = learner.prepare_rollout(fresh)[:, :n, -2]
            weight = advantage.clamp(max=1.0).exp()
        return kept | {"weight": weight}
