"""Predicted against published iteration times: the errors that the docs print are held here."""

import statistics

import pytest
from support.planner import DATA, needs_data, published

from isthmus.train.planner.accelerators import H100
from isthmus.train.planner.cluster import Cluster, Site
from isthmus.train.planner.layout import Layout
from isthmus.train.planner.predict import predict
from isthmus.train.planner.published import (
    errors,
    korthikanti_cases,
    megatron_cases,
    quantile,
    single_node_cases,
    split_by_layout,
)
from isthmus.train.planner.shape import Shape


@needs_data
def test_iterations_of_layouts_that_the_constants_never_saw() -> None:
    """vTrain, arXiv 2312.12391: 9 layouts for the constants, 9 others here."""
    train, test = split_by_layout(single_node_cases(DATA / "iteration_times_single_node_a100.csv"))
    assert len(train) + len(test) == 1440
    assert not {case.split for case in train} & {case.split for case in test}
    missed = errors(test)
    assert quantile(missed, 0.5) <= 0.10
    assert quantile(missed, 0.9) <= 0.25
    assert abs(statistics.median(missed)) < 0.05  # no bias


@needs_data
def test_megatron_throughput() -> None:
    """arXiv 2104.04473, table 1: 1.7B to 1T on 32 to 3,072 A100, with the constants of one node."""
    assert quantile(errors(megatron_cases(published()["megatron_sc21_table1_A100"])), 0.5) <= 0.12


@needs_data
def test_korthikanti_iterations() -> None:
    """arXiv 2205.05198, table 5: 22B to 1T, with full and with selective recomputation."""
    missed = errors(korthikanti_cases(published()["korthikanti_table5_iter_s"]))
    assert len(missed) == 8
    assert max(abs(error) for error in missed) <= 0.12


@pytest.mark.parametrize(
    ("data", "batch", "context", "sequence", "measured"),
    # Llama 3 (arXiv 2407.21783), table 4: BF16 TFLOP/s per H100 of the 405B model. Its causal attention counts half.
    [(64, 2048, 1, 8192, 430), (128, 2048, 1, 8192, 400), (8, 128, 16, 131072, 380)],
)
def test_an_accelerator_that_was_never_fitted(
    data: int, batch: int, context: int, sequence: int, measured: float
) -> None:
    """The H100's constants follow from its data sheet: no run on one was used."""
    llama = Shape(  # 126 layers in the paper, of which the first and the last stage have one less: here 128
        layers=128, hidden=16384, ffn=53248, heads=128, groups=8, head_width=128, vocabulary=128_256
    )
    layout = Layout(
        tensor=8,
        sequence=True,
        pipeline=16,
        virtual_pipeline=8,
        context=context,
        data=data,
        global_batch=batch,
        sequence_length=sequence,
    )
    cluster = Cluster(sites=[Site(name="main", accelerator=H100, count=layout.ranks)])
    prediction = predict(llama, layout, cluster)
    attention = 6.0 * llama.layers * llama.attention_width * sequence  # half of what the count of MFU has
    causal = 1 - attention / llama.model_flops_per_token(sequence)
    assert prediction.tflops_per_accelerator * causal == pytest.approx(measured, rel=0.10)
