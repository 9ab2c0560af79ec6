"""Rank arithmetic, its refusals, and the sizes that follow from a model's shape."""

import itertools
import re

import pytest

from isthmus.errors import UserError
from isthmus.parallelism.config import ModelConfig, ParallelConfig, Precision
from isthmus.parallelism.flops import count_parameters, model_flops_per_token
from isthmus.parallelism.topology import (
    Topology,
    build_topology,
    head_dim,
    padded_vocab_size,
    validate_batch,
    validate_device,
    validate_layout,
    validate_model,
)

# 1 layer, 2 query heads of width 4 and 1 key/value head: small enough to count by hand.
_TOY = ModelConfig(
    num_layers=1, hidden_size=8, ffn_hidden_size=12, num_attention_heads=2, num_query_groups=1, vocab_size=300
)


@pytest.mark.parametrize(("tensor", "context", "data", "pipeline"), [(2, 3, 4, 2), (1, 1, 5, 3), (4, 2, 1, 2)])
def test_rank_coordinates_follow_megatrons_order(tensor: int, context: int, data: int, pipeline: int) -> None:
    parallel = ParallelConfig(tensor=tensor, context=context, pipeline=pipeline)
    topology = build_topology(parallel, tensor * context * data * pipeline)
    assert (topology.data, topology.world_size) == (data, tensor * context * data * pipeline)
    # Fastest axis first: tensor, context, data, pipeline. product() turns its last axis fastest.
    coordinates = itertools.product(range(pipeline), range(data), range(context), range(tensor))
    for rank, (pipeline_rank, data_rank, _, _) in enumerate(coordinates):
        assert (topology.pipeline_rank(rank), topology.data_rank(rank)) == (pipeline_rank, data_rank)


@pytest.mark.parametrize(("vocabulary", "rows"), [(257, 384), (384, 384), (385, 512), (128_256, 128_256)])
def test_vocabulary_is_padded_to_128(vocabulary: int, rows: int) -> None:
    assert padded_vocab_size(ModelConfig(vocab_size=vocabulary)) == rows


def test_head_dim_may_be_given() -> None:
    assert (head_dim(_TOY), head_dim(ModelConfig(head_dim=48))) == (4, 48)


def test_parameters_and_flops_of_a_model_counted_by_hand() -> None:
    # queries 8x8, keys and values 8x4 each, projection 8x8; gate, up and down 8x12 each; 2 norms of 8
    layer = 64 + 32 + 32 + 64 + 3 * 96 + 16
    embedding = 384 * 8  # 300 rows padded
    assert count_parameters(_TOY) == layer + 8 + 2 * embedding  # one more norm at the end; embedding and output layer
    tied = ModelConfig(**{name: getattr(_TOY, name) for name in _TOY.__slots__} | {"tied_embeddings": True})
    assert count_parameters(tied) == layer + 8 + embedding
    # 6 FLOPs per matrix parameter (output layer, but no look-up), and 12 x 1 layer x 2 heads x 4 x 10 tokens.
    # 1%: whether the 24 norm weights count is a matter of taste.
    expected = 6 * (layer - 16 + embedding) + 12 * 2 * 4 * 10
    assert model_flops_per_token(_TOY, 10) == pytest.approx(expected, rel=0.01)
    assert model_flops_per_token(tied, 10) == model_flops_per_token(_TOY, 10)
    assert model_flops_per_token(_TOY, 20) - model_flops_per_token(_TOY, 10) == 960


def test_experts_count_all_or_only_the_active() -> None:
    experts = ModelConfig(**{name: getattr(_TOY, name) for name in _TOY.__slots__} | {"num_experts": 4})
    dense = count_parameters(_TOY)
    router, ffn = 8 * 4, 3 * 96
    assert count_parameters(experts) == dense + 3 * ffn + router
    assert count_parameters(experts, active=True) == dense + ffn + router  # 2 experts per token


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "model.num_layers: is 0"),
        ({"hidden_size": 0}, "model.hidden_size: is 0"),
        ({"ffn_hidden_size": -1}, "model.ffn_hidden_size: is -1"),
        ({"num_attention_heads": 0}, "model.num_attention_heads: is 0"),
        ({"num_query_groups": 0}, "model.num_query_groups: is 0"),
        ({"vocab_size": 256}, "model.vocab_size: is 256"),
        ({"hidden_size": 130}, "4 heads do not divide hidden_size 130"),
        ({"head_dim": 33}, "head_dim 33 is not a positive even number"),
        ({"num_query_groups": 3}, "3 key/value groups do not divide 4 heads"),
        ({"init_std": 0.0}, "model.init_std: is 0.0"),
        ({"norm_epsilon": -1e-5}, "model.norm_epsilon: is -1e-05"),
        ({"rope_base": 0.0}, "model.rope_base: is 0.0"),
        ({"num_experts": -1}, "2 experts per token out of -1"),
        ({"num_experts": 4, "experts_per_token": 5}, "5 experts per token out of 4"),
        ({"num_experts": 4, "experts_per_token": 0}, "0 experts per token out of 4"),
    ],
)
def test_shapes_that_no_layout_can_run(change: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        validate_model(ModelConfig(**change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parallel", "world_size", "message"),
    [
        ({"tensor": 0}, 4, "parallel.tensor: is 0"),
        ({"virtual_pipeline": 0}, 4, "parallel.virtual_pipeline: is 0"),
        ({"expert": -2}, 4, "parallel.expert: is -2"),
        ({"tensor": 2, "pipeline": 2, "context": 2}, 12, "2 x pipeline 2 x context 2 = 8 does not divide the 12 proc"),
        ({"tensor": 2}, 1, "= 2 does not divide the 1 process of"),
        ({"expert": 3, "context": 2}, 8, "3 does not divide data x context = 4 x 2"),
    ],
)
def test_worlds_that_the_axes_do_not_divide(parallel: dict[str, int], world_size: int, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build_topology(ParallelConfig(**parallel), world_size)  # type: ignore[arg-type]


_EXPERTS = {"num_experts": 4}


@pytest.mark.parametrize(
    ("model", "parallel", "sequence_length", "message"),
    [
        ({}, {"tensor": 3}, 128, "3 does not divide the 4 attention heads"),
        ({}, {"tensor": 4}, 128, "4 does not divide the 2 key/value groups"),
        ({"ffn_hidden_size": 351}, {"tensor": 2}, 128, "2 does not divide the 351 ffn_hidden_size"),
        (
            {"num_attention_heads": 6, "num_query_groups": 3, "hidden_size": 384, "ffn_hidden_size": 3},
            {"tensor": 3},
            128,
            "3 does not divide the 1024 padded vocabulary rows",
        ),
        ({}, {"sequence": True}, 128, "parallel.sequence: needs parallel.tensor > 1"),
        ({}, {"sequence": True, "tensor": 2}, 127, "tensor 2 does not divide the 127 tokens"),
        ({}, {"sequence": True, "tensor": 2, "context": 2}, 126, "tensor 2 does not divide the 63 tokens"),
        ({}, {"context": 4}, 124, "2 x 4 does not divide sequence_length 124"),
        ({}, {"virtual_pipeline": 2}, 128, "needs parallel.pipeline > 1"),
        ({}, {"pipeline": 3}, 128, "3 stages do not divide the 4 layers"),
        ({}, {"pipeline": 2, "virtual_pipeline": 4}, 128, "2 stages x 4 chunks do not divide the 4 layers"),
        ({}, {"expert": 2}, 128, "parallel.expert: the model is dense"),
        (_EXPERTS, {"expert": 3}, 128, "3 does not divide the 4 experts"),
        (_EXPERTS, {"tensor": 2}, 128, "set parallel.sequence=true"),
        ({}, {"bucket_parameters": 0}, 128, "parallel.bucket_parameters: is 0"),
    ],
)
def test_layouts_that_the_shape_does_not_divide_into(
    model: dict[str, int], parallel: dict[str, int], sequence_length: int, message: str
) -> None:
    shape = ModelConfig(**model)  # type: ignore[arg-type]
    validate_model(shape)
    with pytest.raises(UserError, match=re.escape(message)):
        validate_layout(shape, ParallelConfig(**parallel), sequence_length)  # type: ignore[arg-type]


def test_layouts_that_fit() -> None:
    validate_layout(ModelConfig(), ParallelConfig(tensor=2, pipeline=2, virtual_pipeline=2, sequence=True), 128)
    validate_layout(ModelConfig(num_experts=4), ParallelConfig(tensor=2, sequence=True, expert=4, context=2), 128)


@pytest.mark.parametrize(
    ("parallel", "precision", "cuda", "message"),
    [
        ({}, Precision.fp8, False, "train.precision=fp8: there is no CUDA device"),
        ({}, Precision.fp8, True, "train.precision=fp8: transformer-engine cannot be imported"),
        ({"context": 2}, Precision.bf16, False, "parallel.context=2: ring attention comes from transformer-engine"),
        ({"context": 2}, Precision.bf16, True, "and transformer-engine cannot be imported"),
    ],
)
def test_machines_that_cannot(parallel: dict[str, int], precision: Precision, cuda: bool, message: str) -> None:
    config = ParallelConfig(**parallel)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=re.escape(message)):
        validate_device(config, precision, cuda=cuda, transformer_engine=False)
    validate_device(config, precision, cuda=True, transformer_engine=True)


def test_microbatches() -> None:
    plain = Topology(tensor=1, context=1, data=3, pipeline=2, virtual_pipeline=1, expert=1)
    interleaved = Topology(tensor=1, context=1, data=3, pipeline=2, virtual_pipeline=2, expert=1)
    assert validate_batch(plain, global_batch=18, micro_batch=2) == 3
    with pytest.raises(UserError, match=r"global_batch=20: micro_batch 2 x data-parallel size 3 = 6 does not divide"):
        validate_batch(plain, global_batch=20, micro_batch=2)
    with pytest.raises(UserError, match="needs a multiple of 2 microbatches, these are 3"):
        validate_batch(interleaved, global_batch=18, micro_batch=2)
    assert validate_batch(interleaved, global_batch=24, micro_batch=2) == 4
    for global_batch, micro_batch in ((0, 1), (6, 0)):
        with pytest.raises(UserError, match="is 0; it starts at 1"):
            validate_batch(plain, global_batch, micro_batch)
