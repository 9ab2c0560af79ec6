"""Which rank does what inside a site: pure arithmetic, no torch, no processes.

Ranks are numbered as Megatron does by default, fastest axis first: tensor, context, expert, data, pipeline. The expert
axis lies inside the data axis: an expert-parallel group is made of ranks that are data-parallel for the dense layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.errors import UserError
from isthmus.parallelism.config import ModelConfig, ParallelConfig, Precision

VOCAB_MULTIPLE = 128  # Megatron's default: matrix products like it, and every tensor size up to 128 divides it


@dataclass(frozen=True)
class Topology:
    """Sizes of the mesh axes of one site."""

    tensor: int
    context: int
    data: int
    pipeline: int
    virtual_pipeline: int
    expert: int

    @property
    def world_size(self) -> int:
        return self.tensor * self.context * self.data * self.pipeline

    def data_rank(self, rank: int) -> int:
        """Return the data-parallel coordinate of a global rank: the ranks that share it read the same samples."""
        return rank // (self.tensor * self.context) % self.data

    def pipeline_rank(self, rank: int) -> int:
        return rank // (self.tensor * self.context * self.data)


def build_topology(parallel: ParallelConfig, world_size: int) -> Topology:
    """Derive the data-parallel size from the number of ranks.

    Raises:
        UserError: a size below 1, or a world size that the model-parallel sizes do not divide.
    """
    for name in ("tensor", "pipeline", "virtual_pipeline", "context", "expert"):
        size = getattr(parallel, name)
        if size < 1:
            raise UserError(f"is {size}", where=f"parallel.{name}", fix="sizes start at 1")
    model_parallel = parallel.tensor * parallel.pipeline * parallel.context
    if world_size % model_parallel:
        raise UserError(
            f"tensor {parallel.tensor} x pipeline {parallel.pipeline} x context {parallel.context} = {model_parallel} "
            f"does not divide the {world_size} process{'es' if world_size > 1 else ''} of this site",
            where="parallel",
            fix=f"start a multiple of {model_parallel}: `isthmus launch launch.processes={model_parallel} ...`",
        )
    data = world_size // model_parallel
    if (data * parallel.context) % parallel.expert:
        raise UserError(
            f"{parallel.expert} does not divide data x context = {data} x {parallel.context}",
            where="parallel.expert",
            fix="expert-parallel groups are made of data-parallel ranks",
        )
    return Topology(
        tensor=parallel.tensor,
        context=parallel.context,
        data=data,
        pipeline=parallel.pipeline,
        virtual_pipeline=parallel.virtual_pipeline,
        expert=parallel.expert,
    )


def padded_vocab_size(model: ModelConfig) -> int:
    """Return the rows of the embedding: the same on every topology, so that all start from equal weights."""
    return -(-model.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def head_dim(model: ModelConfig) -> int:
    return model.head_dim if model.head_dim is not None else model.hidden_size // model.num_attention_heads


def validate_model(model: ModelConfig) -> None:
    """Refuse a shape that no layout can run.

    Raises:
        UserError: naming the key and the arithmetic.
    """
    for name in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups"):
        if getattr(model, name) < 1:
            raise UserError(f"is {getattr(model, name)}", where=f"model.{name}", fix="it starts at 1")
    if model.vocab_size < 257:
        raise UserError(f"is {model.vocab_size}", where="model.vocab_size", fix="256 bytes and one end mark need 257")
    if model.head_dim is None and model.hidden_size % model.num_attention_heads:
        raise UserError(
            f"{model.num_attention_heads} heads do not divide hidden_size {model.hidden_size}",
            where="model.num_attention_heads",
            fix="change one of them or give model.head_dim",
        )
    if head_dim(model) % 2 or (model.head_dim is not None and model.head_dim < 2):
        raise UserError(
            f"head_dim {head_dim(model)} is not a positive even number",
            where="model",
            fix="rotary positions turn pairs",
        )
    if model.num_attention_heads % model.num_query_groups:
        raise UserError(
            f"{model.num_query_groups} key/value groups do not divide {model.num_attention_heads} heads",
            where="model.num_query_groups",
            fix="choose a divisor",
        )
    if model.expert_balance < 0:
        raise UserError(f"is {model.expert_balance}", where="model.expert_balance", fix="0 turns it off")
    for name in ("init_std", "norm_epsilon", "rope_base"):
        if getattr(model, name) <= 0:
            raise UserError(f"is {getattr(model, name)}", where=f"model.{name}", fix="it must be positive")
    if model.num_experts < 0 or (model.num_experts and not 1 <= model.experts_per_token <= model.num_experts):
        raise UserError(
            f"{model.experts_per_token} experts per token out of {model.num_experts}",
            where="model.experts_per_token",
            fix="choose 1 to model.num_experts",
        )


def validate_layout(model: ModelConfig, parallel: ParallelConfig, sequence_length: int) -> None:
    """Refuse a layout that this shape does not divide into.

    Raises:
        UserError: naming the key and the arithmetic.
    """
    tensor, pipeline, virtual = parallel.tensor, parallel.pipeline, parallel.virtual_pipeline
    for what, size in (
        ("attention heads", model.num_attention_heads),
        ("key/value groups", model.num_query_groups),
        ("ffn_hidden_size", model.ffn_hidden_size),
        ("padded vocabulary rows", padded_vocab_size(model)),
    ):
        if size % tensor:
            raise UserError(
                f"{tensor} does not divide the {size} {what}", where="parallel.tensor", fix="choose a common divisor"
            )
    if parallel.sequence and tensor == 1:
        raise UserError("needs parallel.tensor > 1", where="parallel.sequence", fix="it splits over the tensor ranks")
    if parallel.sequence and (sequence_length // parallel.context) % tensor:
        raise UserError(
            f"tensor {tensor} does not divide the {sequence_length // parallel.context} tokens of a sequence",
            where="parallel.sequence",
            fix="change train.sequence_length",
        )
    if parallel.context > 1 and sequence_length % (2 * parallel.context):
        raise UserError(
            f"2 x {parallel.context} does not divide sequence_length {sequence_length}",
            where="parallel.context",
            fix="causal context parallelism pairs an early and a late chunk on every rank",
        )
    if virtual > 1 and pipeline == 1:
        raise UserError("needs parallel.pipeline > 1", where="parallel.virtual_pipeline", fix="leave it at 1")
    if model.num_layers % (pipeline * virtual):
        stages = f"{pipeline} stages" + (f" x {virtual} chunks" if virtual > 1 else "")
        raise UserError(
            f"{stages} do not divide the {model.num_layers} layers",
            where="parallel.pipeline",
            fix="choose a divisor of model.num_layers",
        )
    if parallel.expert > 1 and not model.num_experts:
        raise UserError("the model is dense", where="parallel.expert", fix="leave it at 1 or set model.num_experts")
    if model.num_experts % parallel.expert:
        raise UserError(
            f"{parallel.expert} does not divide the {model.num_experts} experts", where="parallel.expert", fix=""
        )
    if model.num_experts and tensor > 1 and not parallel.sequence:
        raise UserError(
            "a mixture of experts with tensor parallelism trains only with sequence parallelism",
            where="parallel.sequence",
            fix="set parallel.sequence=true (Megatron's rule)",
        )
    if parallel.bucket_parameters is not None and parallel.bucket_parameters < 1:
        raise UserError(f"is {parallel.bucket_parameters}", where="parallel.bucket_parameters", fix="it starts at 1")


def validate_device(parallel: ParallelConfig, precision: Precision, *, cuda: bool, transformer_engine: bool) -> None:
    """Refuse what this machine cannot run.

    Raises:
        UserError: fp8 or context parallelism without transformer-engine, fp8 on a CPU.
    """
    if precision is Precision.fp8 and not (cuda and transformer_engine):
        missing = "transformer-engine cannot be imported" if cuda else "there is no CUDA device"
        raise UserError(missing, where="train.precision=fp8", fix="use bf16 or `pip install 'isthmus[fp8]'` on a GPU")
    if parallel.context > 1 and precision is Precision.fp32:
        raise UserError(
            "ring attention needs bf16 or fp8", where="train.precision=fp32", fix="use train.precision=bf16"
        )
    if parallel.context > 1 and not (cuda and transformer_engine):
        missing = "transformer-engine cannot be imported" if cuda else "there is no CUDA device"
        raise UserError(
            f"ring attention comes from transformer-engine, and {missing}",
            where=f"parallel.context={parallel.context}",
            fix="use parallel.context=1 here",
        )


def validate_batch(
    topology: Topology, global_batch: int, micro_batch: int, *, shares: Sequence[int] = (1,), site: int = 0
) -> int:
    """Return the microbatches per step and data-parallel rank of a site, where sites with this topology have shares.

    Raises:
        UserError: the global batch does not divide, or an interleaved pipeline gets a number that it cannot schedule.
    """
    for name, size in (("global_batch", global_batch), ("micro_batch", micro_batch)):
        if size < 1:
            raise UserError(f"is {size}", where=f"train.{name}", fix="it starts at 1")
    per_pass = micro_batch * topology.data * sum(shares) // math.gcd(*shares)
    if global_batch % per_pass:
        of_sites = "" if len(shares) == 1 else f" x {len(shares)} sites"
        if len(set(shares)) > 1:
            of_sites = f" x {sum(shares) // math.gcd(*shares)} shares of sites"
        raise UserError(
            f"micro_batch {micro_batch} x data-parallel size {topology.data}{of_sites} = {per_pass} does not divide it",
            where=f"train.global_batch={global_batch}",
            fix="change one of them",
        )
    microbatches = global_batch * shares[site] // sum(shares) // (micro_batch * topology.data)
    if topology.virtual_pipeline > 1 and microbatches % topology.pipeline:
        raise UserError(
            f"the interleaved schedule needs a multiple of {topology.pipeline} microbatches, these are {microbatches}",
            where="train.global_batch",
            fix="change train.global_batch or train.micro_batch",
        )
    return microbatches
