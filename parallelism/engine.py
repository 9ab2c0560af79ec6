"""One site's model as seen by one rank: forward and backward, gradient norm, optimizer step, evaluation."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from megatron.core.distributed.finalize_model_grads import (
    _allreduce_non_tensor_model_parallel_grads,
    _allreduce_word_embedding_grads,
    reset_model_temporary_tensors,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.utils import get_batch_on_this_cp_rank
from torch import Tensor

from isthmus.parallelism import cpu, gradients, initial
from isthmus.parallelism.config import Fp8Recipe, ModelConfig, OptimConfig, ParallelConfig, Precision
from isthmus.parallelism.copies import EMBEDDING, copies_differ
from isthmus.parallelism.gradients import BucketReady, GradientBucket
from isthmus.parallelism.model import build_chunks, transformer_config
from isthmus.parallelism.optimizer import ShardedAdamW
from isthmus.parallelism.slices import Piece, Slice, global_name, partition_dim, pieces_of, slices_of
from isthmus.parallelism.stopwatch import Stopwatch


class Microbatch(Protocol):
    """What one forward pass of one data-parallel rank reads; B samples of S tokens."""

    @property
    def tokens_BS(self) -> Tensor:
        """int64"""

    @property
    def labels_BS(self) -> Tensor:
        """int64: the token that follows each"""

    @property
    def mask_BS(self) -> Tensor:
        """float32: 1 where the label counts, 0 where it does not"""


@dataclass(frozen=True)
class StepLoss:
    """Sums over the site's tokens; adding two of them gives the sums over both."""

    loss_sum: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.loss_sum / self.tokens if self.tokens else float("nan")


@dataclass(frozen=True)
class OwnedSlice:
    """A stretch of the model that this rank owns: fp32 parameter and gradient, flat views of equal length."""

    slice: Slice
    parameter: Tensor
    gradient: Tensor


class Engine:
    """Megatron-core's model, data parallelism, pipeline schedule and optimizer behind a handful of verbs.

    A training step is `forward_backward`, `gradient_norm`, then `step` or `discard`. Between the first two, the
    gradients are sums over this site's tokens, so that sums over sites can be formed before they are divided.
    """

    def __init__(
        self,
        *,
        model: ModelConfig,
        parallel: ParallelConfig,
        optim: OptimConfig,
        groups: ProcessGroupCollection,
        precision: Precision,
        fp8_recipe: Fp8Recipe,
        sequence_length: int,
        micro_batch: int,
        seed: int,
        deterministic: bool = False,
        mask_documents: bool = False,
        reset_positions: bool = False,
    ) -> None:
        self.groups = groups
        self.device = torch.device(torch.cuda.current_device())
        self._sequence_length, self._micro_batch = sequence_length, micro_batch
        self._tied_over_stages = model.tied_embeddings and parallel.pipeline > 1
        self._config = transformer_config(model, parallel, precision, fp8_recipe, deterministic)
        self._config.mask_documents, self._config.reset_positions = mask_documents, reset_positions
        # Nothing random happens inside the model, but Megatron wants its generators to exist.
        model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
        with cpu.construction():
            modules = build_chunks(model, self._config, groups, sequence_length)
        self._pieces: dict[torch.nn.Parameter, list[Piece]] = {}
        for module in modules:
            self._prepare_parameters(module, model, seed)
        # With one data-parallel rank there is nothing to shard, and Megatron would copy every parameter to itself.
        sharded = parallel.distributed_optimizer and groups.dp_cp.size() > 1
        self._sharded = sharded
        self.chunks = gradients.wrap(modules, self._config, parallel, groups, sharded=sharded)
        self.optimizer = ShardedAdamW(optim, precision, self.chunks, groups, sharded=sharded, overlap=parallel.overlap)
        self._reduction = Stopwatch(self.device)
        self._forwards, self._gathers = Stopwatch(self.device), Stopwatch(self.device)
        gradients.time_parameter_gathers(self.chunks, self._gathers)
        self._configure_schedule(parallel)
        self._scale = 1.0
        self._norm = 0.0

    def forward_backward(self, microbatches: Sequence[Microbatch]) -> StepLoss:
        """Run forward and backward over this rank's microbatches; gradients are then reduced inside the site.

        Returns:
            The loss summed over the tokens of all ranks of the site, the same on every rank.
        """
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        reports = self._run(microbatches, forward_only=False)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        if reports and self._reports_losses():
            sums += torch.stack(reports).sum((0, 1))
        torch.distributed.all_reduce(sums)
        loss_sum, tokens = sums.tolist()
        return StepLoss(loss_sum, round(tokens))

    def gradient_norm(self, tokens: int) -> float:
        """Complete the gradients, as means over `tokens`, and return their global L2 norm.

        The tokens are those of every site that took part. A step without any token has norm 0.
        """
        _allreduce_non_tensor_model_parallel_grads(self.chunks, self._config, self.groups.tp)
        _allreduce_word_embedding_grads(self.chunks, self._config, self.groups.embd, self.groups.pp)
        # The division is left to the optimizer's one pass over the gradients.
        self._scale = 1.0 / max(tokens, 1)
        self._norm = self.optimizer.gradient_norm() * self._scale
        return self._norm

    def step(self, learning_rate: float) -> None:
        """Clip, update this rank's shard, and hand the new parameters to the site's other ranks."""
        self.optimizer.step(learning_rate, norm=self._norm, scale=self._scale)

    def discard(self) -> None:
        """Forget the gradients of this step; parameters and optimizer state stay as they are."""
        self.optimizer.zero_grad()

    @torch.no_grad()
    def evaluate(self, microbatches: Sequence[Microbatch]) -> Tensor:
        """Return (loss sum, tokens) of each sample of this data-parallel rank, (samples, 2) float64, on every rank.

        Ranks that are data-parallel to each other return different samples.
        """
        for chunk in self.chunks:
            chunk.eval()
        reports = self._run(microbatches, forward_only=True)
        for chunk in self.chunks:
            chunk.train()
        samples = sum(batch.tokens_BS.shape[0] for batch in microbatches)
        sums = torch.zeros(samples, 2, dtype=torch.float64, device=self.device)
        if reports and self._reports_losses():
            sums += torch.cat(reports)
        for group in (self.groups.tp, self.groups.cp, self.groups.pp):
            if group.size() > 1:
                torch.distributed.all_reduce(sums, group=group)
        return sums

    def on_bucket_ready(self, callback: BucketReady) -> list[GradientBucket]:
        """Have `callback` called as each gradient bucket's reduction inside the site begins; return the buckets."""
        return gradients.announce_buckets(self.chunks, self._pieces, callback)

    def owned(self) -> Iterator[OwnedSlice]:
        """Yield what this rank owns of the fp32 parameters and their gradients, by address."""
        for parameter, main, start, stop in self.optimizer.main_parameters():
            flat_main, flat_gradient = main.detach().view(-1), parameter.main_grad.view(-1)  # type: ignore[attr-defined]
            for where, first, last in slices_of(self._pieces[parameter], start, stop):
                yield OwnedSlice(where, flat_main[first - start : last - start], flat_gradient[first:last])

    def state(self) -> Iterator[tuple[str, Slice, Tensor]]:
        """Yield (kind, address, flat view) of what a checkpoint must hold of this rank: parameters and moments."""
        for parameter, main, start, stop in self.optimizer.main_parameters():
            parts = {"parameter": main.detach(), **self.optimizer.moments(main)}
            for kind, tensor in parts.items():
                for where, first, last in slices_of(self._pieces[parameter], start, stop):
                    yield kind, where, tensor.view(-1)[first - start : last - start]

    def saves(self, where: Slice) -> bool:
        """Return whether this rank is the one that saves a slice it owns: of copies, one is enough."""
        groups = self.groups
        expert = ".experts." in where.name
        tensor, data = (groups.expt_tp, groups.expt_dp) if expert else (groups.tp, groups.dp_cp)
        if where.shape == where.global_shape and tensor.rank() > 0:
            return False
        if where.name == EMBEDDING and self._tied_over_stages and groups.pp.rank() > 0:
            return False
        return self._sharded or data.rank() == 0

    def restored(self, updates: int) -> None:
        """Take up what was written into `state`, after so many updates; all ranks of the site call this together."""
        self.optimizer.set_updates(updates)
        self.publish_parameters()

    def broadcast(self, message: bytes) -> bytes:
        """Return rank 0's message on every rank of the site."""
        length = torch.tensor([len(message)], device=self.device)
        torch.distributed.broadcast(length, src=0)
        content = torch.zeros(int(length.item()), dtype=torch.uint8, device=self.device)
        if self.rank == 0 and message:
            content.copy_(torch.frombuffer(bytearray(message), dtype=torch.uint8))
        torch.distributed.broadcast(content, src=0)
        return content.cpu().numpy().tobytes()

    @torch.no_grad()
    def publish_parameters(self) -> None:
        """Hand main parameters that were changed from outside the optimizer to the model, on every rank of the site."""
        self.optimizer.publish_parameters()

    def exposed_reduction_seconds(self) -> float:
        """Return how long this rank has waited for the site's gradient reduction, after backward, since last asked."""
        return self._reduction.take()

    def forward_seconds(self) -> float:
        """Return the time of this rank's forward passes of training since last asked, without the wait for parameters
        that other ranks update: its own work, but where ranks share each layer (tensor and expert parallelism).
        """
        return max(self._forwards.take() - self._gathers.take(), 0.0)

    @property
    def rank(self) -> int:
        """This rank's number in the site."""
        return torch.distributed.get_rank()

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks of the site."""
        values = values.to(self.device)
        torch.distributed.all_reduce(values)
        return values

    def max_over_ranks(self, values: Tensor) -> Tensor:
        """Return the largest of the ranks' values, entry by entry."""
        values = values.to(self.device)
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
        return values

    def any_rank(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank of the site: how ranks agree on a decision."""
        vote = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(vote, op=torch.distributed.ReduceOp.MAX)
        return bool(vote.item())

    def copies_differ(self) -> bool:
        """Return whether copies of a parameter that several ranks of the site hold have come apart by any bit."""
        owned = [(entry.slice, entry.parameter) for entry in self.owned()]
        differ = copies_differ(owned, self.groups, tied_over_stages=self._tied_over_stages, device=self.device)
        return self.any_rank(differ)

    def sum_over_data_ranks(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks that read different samples."""
        torch.distributed.all_reduce(values, group=self.groups.dp)
        return values

    def _reports_losses(self) -> bool:
        """Every tensor rank of the last stage knows the same losses; one of them reports them."""
        return self.groups.tp.rank() == 0 and self.groups.pp.rank() == self.groups.pp.size() - 1

    def _prepare_parameters(self, module: Any, model: ModelConfig, seed: int) -> None:
        layer_numbers = [layer.layer_number - 1 for layer in module.decoder.layers]
        experts_here = model.num_experts // self.groups.ep.size() if model.num_experts else 0
        for local_name, parameter in module.named_parameters():
            name = global_name(
                local_name,
                layer_numbers=layer_numbers,
                first_expert=experts_here * self.groups.ep.rank(),
                tied_embeddings=model.tied_embeddings,
            )
            # Experts are not split over the tensor ranks where there are as many expert-tensor ranks as tensor ranks.
            tensor = self.groups.expt_tp if "experts." in local_name else self.groups.tp
            pieces = pieces_of(name, tuple(parameter.shape), tensor_rank=tensor.rank(), tensor_size=tensor.size())
            if not hasattr(parameter, "tensor_model_parallel"):
                dim = partition_dim(local_name)
                split = dim is not None
                set_tensor_model_parallel_attributes(parameter, split, dim if split else -1, 1)
            initial.fill(parameter, pieces, seed=seed, init_std=model.init_std, num_layers=model.num_layers)
            self._pieces[parameter] = pieces

    def _configure_schedule(self, parallel: ParallelConfig) -> None:
        config = self._config
        if parallel.overlap:
            no_sync = [chunk.no_sync for chunk in self.chunks]
            config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
        config.finalize_model_grads_func = self._finish_reduction
        self._schedule = get_forward_backward_func()

    def _finish_reduction(self, chunks: list[Any], *_: Any, **__: Any) -> None:
        with self._reduction.measure():
            for chunk in chunks:
                chunk.finish_grad_sync()
        reset_model_temporary_tensors(self._config, chunks)

    def _run(self, microbatches: Sequence[Microbatch], *, forward_only: bool) -> list[Tensor]:
        iterators = [iter(microbatches) for _ in self.chunks]
        return self._schedule(
            forward_step_func=self._forward,
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=self.chunks,
            num_microbatches=len(microbatches),
            seq_length=self._sequence_length,
            micro_batch_size=self._micro_batch,
            forward_only=forward_only,
        )

    def _forward(self, batches: Iterator[Microbatch], chunk: Any) -> tuple[Tensor, Any]:
        batch = next(batches)
        tensors = {"tokens": batch.tokens_BS, "labels": batch.labels_BS, "mask": batch.mask_BS}
        documents_BS = getattr(batch, "documents_BS", None)
        on_device = {name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()}
        if self.groups.cp.size() > 1:
            on_device = get_batch_on_this_cp_rank(on_device)
        # RotaryAttention reads documents where others read a mask: it makes mask and positions of them.
        documents_BS = None if documents_BS is None else documents_BS.to(self.device, non_blocking=True)
        with self._forwards.measure() if torch.is_grad_enabled() else nullcontext():
            output = chunk(
                on_device["tokens"], None, documents_BS, labels=on_device["labels"], loss_mask=on_device["mask"]
            )
        return output, partial(_sum_losses, on_device["mask"])


def _sum_losses(mask_BS: Tensor, losses_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what Megatron's schedules want of a loss: sum to differentiate, tokens, and a report, (B, 2) float64."""
    masked_BS = losses_BS.float() * mask_BS
    tokens_B = mask_BS.sum(1, dtype=torch.float64)
    report = torch.stack([masked_BS.detach().sum(1, dtype=torch.float64), tokens_B], dim=1)
    return masked_BS.sum(), tokens_B.sum().to(torch.int), report
