"""Several models of one shape, trained by one step: every weight has a leading axis.

A stack takes over the states of its members: their parameters and the optimizer's moments become
views of its own tensors, so that whatever reads a member's state (evaluation, checkpoints) reads
what the stack trains. Members share nothing but the step: each has its data, its rates, its clip,
and its own NaN.

Shapes: M members, B batch, T sequence, P parameters of a model, G groups of them.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim.adam import adam

from minigpt import optim, regions
from minigpt.config import TrainConfig
from minigpt.feed import GROUPS, HALVED, Feed, tokens_at, training_shard
from minigpt.state import Job, State


class Stack:
    """M states of one shape; `step` trains each by its next batch.

    On a GPU a step is one CUDA graph, and the host only says where batches lie and at what rates.
    """

    def __init__(self, jobs: Sequence[Job], states: Sequence[State]) -> None:
        """Take over `states`; of `jobs` only seeds and rates may differ.

        Raises ValueError for models with dropout.
        """
        if jobs[0].model.dropout:
            raise ValueError(
                f"dropout = {jobs[0].model.dropout}: what a stack drops would not be what each "
                "model drops alone; train models with dropout one by one"
            )
        self.train, self.model = jobs[0].train, states[0].model
        self.compiled = jobs[0].compiled
        if self.compiled:
            self.model = regions.compiled(self.model)
        self.device = torch.device(jobs[0].device)
        self.shard = training_shard(jobs[0].corpus, self.device)
        self.weights = _Weights(states, self.device)
        self.feed = Feed(jobs, states, self.device)
        self.offsets_T = torch.arange(self.model.config.seq_len + 1, device=self.device)
        self.passes = jobs[0].passes
        self.graph: torch.cuda.CUDAGraph | None = None
        self.losses_M = torch.empty(0)

    def step(self, factors: Sequence[float]) -> Tensor:
        """One step of every member at its rates times its factor; losses_M, in nats per token."""
        self.feed.next(factors)
        if self.device.type != "cuda":
            return self._step()
        if self.graph is None:
            self.graph = self._captured()
        self.graph.replay()
        return self.losses_M.clone()

    def _step(self) -> Tensor:
        M, half = len(self.feed.windows_MB), self.train.dtype == "bfloat16"
        starts_MB1 = (self.feed.windows_MB * self.model.config.seq_len)[..., None]
        chunk_MBT = tokens_at(self.shard, starts_MB1 + self.offsets_T)
        chunk_MBT = chunk_MBT if M > 1 else chunk_MBT[0]
        parts = chunk_MBT.chunk(self.passes, dim=-2)
        total_M = gradient_MP = None
        for part_MBT in parts:
            own = self.weights.of_models(half)
            if self.compiled and M > 1:
                regions.open_ended(own)
            with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
                inputs, targets = part_MBT[..., :-1], part_MBT[..., 1:].contiguous()
                losses_M = functional_call(self.model, own, (inputs, targets)).view(M)
            if len(parts) > 1:
                losses_M = losses_M * (part_MBT.shape[-2] / chunk_MBT.shape[-2])
            (own_MP,) = torch.autograd.grad(losses_M.sum(), [self.weights.values_MP])
            gradient_MP = own_MP if gradient_MP is None else gradient_MP.add_(own_MP)
            own_M = losses_M.detach()
            total_M = own_M if total_M is None else total_M + own_M
        assert total_M is not None
        assert gradient_MP is not None
        self.weights.update(gradient_MP, self.feed.rates_MG, self.train)
        return total_M

    def _captured(self) -> torch.cuda.CUDAGraph:
        """One step as a CUDA graph; what the steps before the recording change is put back."""
        held = self.weights.changing()
        before = [tensor.detach().clone() for tensor in held]
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        aside = torch.cuda.Stream(self.device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(3):  # libraries allocate and choose kernels in their first calls
                self._step()
        here.wait_stream(aside)
        with torch.cuda.graph(graph):
            self.losses_M = self._step()
        with torch.no_grad():
            for tensor, value in zip(held, before, strict=True):
                tensor.copy_(value)
        return graph


class _Weights:
    """The members' parameters and moments, a row for each member, group after group."""

    def __init__(self, states: Sequence[State], device: torch.device) -> None:
        """Copy the values of `states` here, and make theirs views of the copies."""
        names = {parameter: name for name, parameter in states[0].model.named_parameters()}
        groups = optim.parameter_groups(states[0].model)
        ordered = [p for group in GROUPS for p in groups[group]]
        self.names = [names[p] for p in ordered]
        self.shapes = [p.shape for p in ordered]
        self.sizes = [p.numel() for p in ordered]
        self.group_sizes = [sum(p.numel() for p in groups[group]) for group in GROUPS]
        self.halved = sum(len(groups[group]) for group in HALVED)
        shape = (len(states), sum(self.sizes))
        self.values_MP = torch.empty(shape, device=device)
        self.moved_MP, self.exp_avg_MP, self.exp_avg_sq_MP = (
            torch.zeros(shape, device=device) for _ in range(3)
        )
        # torch's optimizers count the steps of each parameter: so do the members' states.
        counts = (len(states), len(self.sizes))
        self.steps_MK = torch.zeros(counts, dtype=torch.float32, device=device)  # of any values
        for i, state in enumerate(states):
            self._adopt(i, state)
        self.values_MP.requires_grad_()

    def _adopt(self, i: int, state: State) -> None:
        parameters = dict(state.model.named_parameters())
        rows = (self.values_MP[i], self.exp_avg_MP[i], self.exp_avg_sq_MP[i])
        parts = zip(
            self.names,
            self.shapes,
            self.steps_MK[i],
            *(row.split(self.sizes) for row in rows),
            strict=True,
        )
        for name, shape, step, *flat in parts:
            value, average, square = (part.view(shape) for part in flat)
            p = parameters[name]
            value.copy_(p.detach())
            p.data = value
            if before := state.optimizer.state.get(p):
                average.copy_(before["exp_avg"])
                square.copy_(before["exp_avg_sq"])
                step.copy_(before["step"])
            state.optimizer.state[p] = {"step": step, "exp_avg": average, "exp_avg_sq": square}

    def of_models(self, half: bool) -> dict[str, Tensor]:
        """Parameters by name, (M, ...) each, or where M is 1 as one model has them."""
        halved, M = sum(self.sizes[: self.halved]), len(self.values_MP)
        values, parts = self.values_MP, []
        if half:
            first, values = values.split((halved, values.shape[1] - halved), dim=1)
            parts = list(first.bfloat16().split(self.sizes[: self.halved], dim=1))
        parts += values.split(self.sizes[len(parts) :], dim=1)
        lead = (M,) if M > 1 else ()
        shaped = zip(self.names, parts, self.shapes, strict=True)
        return {name: part.view(*lead, *shape) for name, part, shape in shaped}

    @torch.no_grad()
    def update(self, gradient_MP: Tensor, rates_MG: Tensor, train: TrainConfig) -> None:
        """Clip each member's gradient and take its AdamW step."""
        if train.grad_clip is not None:
            norm_M1 = torch.linalg.vector_norm(gradient_MP, dim=1, keepdim=True)
            gradient_MP.mul_((train.grad_clip / (norm_M1 + 1e-6)).clamp_(max=1.0))
        # At a rate and a decay of one AdamW leaves 0·moved − Adam's step in `moved`: it takes one
        # rate, and members and groups have their own. Rows, because each member counts its steps.
        adam(
            list(self.moved_MP.unbind()),
            list(gradient_MP.unbind()),
            list(self.exp_avg_MP.unbind()),
            list(self.exp_avg_sq_MP.unbind()),
            [],
            list(self.steps_MK[:, 0].unbind()),  # which it counts up
            fused=True,
            decoupled_weight_decay=True,
            amsgrad=False,
            beta1=train.beta1,
            beta2=train.beta2,
            lr=1.0,
            weight_decay=1.0,
            eps=train.eps,
            maximize=False,
        )
        self.steps_MK[:, 1:].add_(1)
        groups = zip(
            GROUPS,
            self.values_MP.split(self.group_sizes, dim=1),
            self.moved_MP.split(self.group_sizes, dim=1),
            rates_MG.split(1, dim=1),
            strict=True,
        )
        for group, values, moved, rate_M1 in groups:
            if train.weight_decay and group != "vector":
                values.mul_(1 - rate_M1 * train.weight_decay)
            values.addcmul_(moved, rate_M1)

    def changing(self) -> list[Tensor]:
        """All that a step changes."""
        return [self.values_MP, self.moved_MP, self.exp_avg_MP, self.exp_avg_sq_MP, self.steps_MK]
