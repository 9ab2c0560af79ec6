"""AdamW on this rank's shard: norm, clip and step as separate acts, so that others can look in between."""

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from isthmus.parallelism import cpu
from isthmus.parallelism.config import OptimConfig, Precision


class ShardedAdamW:
    """Megatron's optimizers behind four verbs."""

    def __init__(
        self,
        optim: OptimConfig,
        precision: Precision,
        chunks: list[Any],
        groups: ProcessGroupCollection,
        *,
        sharded: bool,
        overlap: bool,
    ) -> None:
        self.clip_grad_norm = optim.clip_grad_norm
        self._chunks, self._sharded = chunks, sharded
        self._owners: dict[int, torch.optim.Optimizer] | None = None
        with cpu.construction():
            self.megatron = get_megatron_optimizer(
                OptimizerConfig(
                    optimizer="adam",
                    lr=optim.learning_rate,
                    min_lr=0.0,
                    weight_decay=optim.weight_decay,
                    adam_beta1=optim.beta1,
                    adam_beta2=optim.beta2,
                    adam_eps=optim.epsilon,
                    bf16=precision is not Precision.fp32,
                    params_dtype=torch.float32 if precision is Precision.fp32 else torch.bfloat16,
                    use_distributed_optimizer=sharded,
                    overlap_param_gather=overlap and sharded,
                    clip_grad=optim.clip_grad_norm,
                ),
                chunks,
                use_gloo_process_groups=False,
                pg_collection=groups,
            )
        for inner in self._inner():
            for group in inner.param_groups:
                # Megatron leaves the decay of a group to its scheduler (weight_decay * wd_mult); ours is constant.
                group["weight_decay"] = optim.weight_decay * group["wd_mult"]
                if isinstance(inner, torch.optim.AdamW):
                    group["fused"], group["foreach"] = True, False

    def parts(self) -> list[Any]:
        """Return Megatron's optimizers: one, or two where experts have their own data-parallel group."""
        parts = getattr(self.megatron, "chained_optimizers", [self.megatron])
        return [part for part in parts if not getattr(part, "is_stub_optimizer", False)]

    @torch.no_grad()
    def gradient_norm(self) -> float:
        """Hand the reduced gradients to the main parameters and return their global L2 norm."""
        self.megatron.prepare_grads()
        total = 0.0
        for part in getattr(self.megatron, "chained_optimizers", [self.megatron]):
            stub = getattr(part, "is_stub_optimizer", False)
            gradients = [] if stub else [grad.view(-1) for grad in part.get_main_grads_for_grad_norm()]
            device = torch.cuda.current_device()
            square = torch.zeros(1, dtype=torch.float64, device=device)
            if gradients:
                norms = torch.stack(torch._foreach_norm(gradients))
                square += norms.double().square().sum()
            torch.distributed.all_reduce(square, group=part.get_grad_stats_parallel_group())
            total += square.item()
        return float(total**0.5)

    @torch.no_grad()
    def step(self, learning_rate: float, *, norm: float, scale: float) -> None:
        """Multiply the gradients by `scale`, clip them to the configured norm (`norm` is that after scaling), update.

        Follows torch.nn.utils.clip_grad_norm_: coefficient = clip / (norm + 1e-6), never above 1.
        """
        if self.clip_grad_norm > 0:
            scale *= min(1.0, self.clip_grad_norm / (norm + 1e-6))
        for inner in self._inner():
            for group in inner.param_groups:
                group["lr"] = learning_rate
                gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
                if gradients and scale != 1.0:
                    torch._foreach_mul_(gradients, scale)
        for part in self.parts():
            part.step_with_ready_grads()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.megatron.zero_grad()

    @torch.no_grad()
    def publish_parameters(self) -> None:
        """Copy this rank's main parameters into the model's, and gather those of the site's other ranks."""
        for part in self.parts():
            if hasattr(part, "_copy_main_params_to_model_params"):
                part._copy_main_params_to_model_params()
        if self._sharded:
            for chunk in self._chunks:
                for group in (*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups):
                    # A gather that is under way has read the old values; with it outstanding, Megatron would only wait.
                    if group.param_gather_handle is not None:
                        group.param_gather_handle.wait()
                        group.param_gather_handle = None
                    group.start_param_sync(force_sync=True)

    def main_parameters(self) -> Iterator[tuple[torch.nn.Parameter, Tensor, int, int]]:
        """Yield (model parameter, fp32 main tensor, start, stop) for what this rank owns.

        The main tensor holds the flat range [start, stop) of the model parameter.
        """
        for part in self.parts():
            if isinstance(part, DistributedOptimizer):
                pairs = [
                    (part.model_fp32_groups, part.shard_fp32_groups),
                    (part.model_float16_groups, part.shard_fp32_from_float16_groups),
                ]
                for model_groups, main_groups in pairs:
                    for parameters, mains in zip(model_groups, main_groups, strict=True):
                        for parameter, main in zip(parameters, mains, strict=True):
                            owned = part._get_model_param_range_map(parameter)["param"]
                            yield parameter, main, owned.start, owned.end
            elif hasattr(part, "float16_groups"):
                for parameters, mains in zip(part.float16_groups, part.fp32_from_float16_groups, strict=True):
                    for parameter, main in zip(parameters, mains, strict=True):
                        yield parameter, main, 0, parameter.numel()
            else:
                for parameter in part.get_parameters():
                    yield parameter, parameter, 0, parameter.numel()

    def moments(self, main: Tensor) -> dict[str, Tensor]:
        """Return AdamW's moments of a main tensor, in its shape; zeros where there was no step yet."""
        if self._owners is None:
            self._owners = {
                id(parameter): inner
                for inner in self._inner()
                for group in inner.param_groups
                for parameter in group["params"]
            }
        inner = self._owners[id(main)]
        state = inner.state[main]
        if not state:
            if isinstance(inner, torch.optim.AdamW):
                state["step"] = torch.zeros((), dtype=torch.float32, device=main.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(main), torch.zeros_like(main)
        return {name: state[name] for name in ("exp_avg", "exp_avg_sq")}

    def set_updates(self, updates: int) -> None:
        """Say how many steps the moments have seen, for their bias correction."""
        for inner in self._inner():
            for group in inner.param_groups:
                if not isinstance(inner, torch.optim.AdamW):
                    group["step"] = updates
                for parameter in group["params"]:
                    if "step" in inner.state[parameter]:
                        inner.state[parameter]["step"].fill_(updates)

    def _inner(self) -> Iterator[torch.optim.Optimizer]:
        for part in self.parts():
            yield part.optimizer
