"""Tokens per CPU second of a whole training step, beside a plain PyTorch loop and Megatron's own local layers.

    python benchmarks/engine.py [--rounds 7] [--steps 4] [--compile] [--out FILE]

All contenders train the same 11M-parameter model (`model=tiny`) on the same random tokens, each in a process of its own
on one thread, in turn; the ratio is taken round by round and its median reported, since the machine's speed drifts. A
step is forward, backward, clipping, AdamW and reading the loss.
"""

import argparse
import datetime
import json
import logging
import multiprocessing
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

warnings.filterwarnings("ignore", module=r"megatron\.")
logging.getLogger("megatron").setLevel(logging.ERROR)

import torch
from torch.nn import functional

from isthmus.config import compose
from isthmus.parallelism import cpu
from isthmus.parallelism.config import Fp8Recipe, Precision
from isthmus.parallelism.engine import Engine
from isthmus.parallelism.groups import site_groups
from isthmus.parallelism.topology import build_topology
from isthmus.train.config import Config

BATCH, SEQUENCE, LEARNING_RATE = 4, 256, 3e-4


@dataclass(frozen=True)
class Batch:
    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    mask_BS: torch.Tensor


Step = Callable[[Batch], float]


def ours(config: Config, groups: object, precision: Precision, compile_layers: bool) -> Step:
    engine = Engine(
        model=config.model,
        parallel=config.parallel,
        optim=config.optim,
        groups=groups,
        precision=precision,
        fp8_recipe=Fp8Recipe.delayed,
        sequence_length=SEQUENCE,
        micro_batch=BATCH,
        seed=0,
        compile_layers=compile_layers,
    )

    def step(batch: Batch) -> float:
        loss = engine.forward_backward([batch])
        engine.gradient_norm(loss.tokens)
        engine.step(LEARNING_RATE)
        return loss.mean

    return step


class PlainLayer(torch.nn.Module):
    """A Llama layer as one would write it in plain PyTorch."""

    def __init__(self, hidden: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = torch.nn.RMSNorm(hidden, eps=1e-5), torch.nn.RMSNorm(hidden, eps=1e-5)
        self.qkv = torch.nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = torch.nn.Linear(hidden, hidden, bias=False)
        self.gate_up = torch.nn.Linear(hidden, 2 * ffn, bias=False)
        self.down = torch.nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, sequence, hidden = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, sequence, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (self.rotate(part, cos, sin) for part in (qkv[0], qkv[1]))
        attended = functional.scaled_dot_product_attention(q, k, qkv[2], is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, sequence, hidden))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)

    @staticmethod
    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin


class PlainModel(torch.nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        model = config.model
        self.embedding = torch.nn.Embedding(model.vocab_size, model.hidden_size)
        self.layers = torch.nn.ModuleList(
            PlainLayer(model.hidden_size, model.num_attention_heads, model.ffn_hidden_size)
            for _ in range(model.num_layers)
        )
        self.norm = torch.nn.RMSNorm(model.hidden_size, eps=1e-5)
        self.output = torch.nn.Linear(model.hidden_size, model.vocab_size, bias=False)
        width = model.hidden_size // model.num_attention_heads
        angles = torch.outer(torch.arange(SEQUENCE), 10_000.0 ** -(torch.arange(0, width, 2) / width)).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()
        for parameter in self.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.output(self.norm(x))


def plain(config: Config, precision: Precision, compile_layers: bool) -> Step:
    model = PlainModel(config)
    if precision is Precision.bf16:
        model.bfloat16()
    if compile_layers:
        for layer in model.layers:
            layer.compile()
    # As anyone would: AdamW directly on the bf16 parameters, without the fp32 copies that isthmus and Megatron keep.
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(batch: Batch) -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(batch.tokens_BS)
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), batch.labels_BS.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def megatron_local(config: Config, groups: object, precision: Precision) -> Step:
    """Megatron's GPTModel with its local specification, its distributed optimizer, clipping and loss."""
    from megatron.core import utils as megatron_utils
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.distributed.finalize_model_grads import finalize_model_grads
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.optimizer import OptimizerConfig, clip_grads, get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from megatron.core.transformer import TransformerConfig

    clip_grads.torch = megatron_utils.torch = cpu._TorchOnCpu()
    model = config.model
    dtype = torch.float32 if precision is Precision.fp32 else torch.bfloat16
    model_parallel_cuda_manual_seed(0, force_reset_rng=True)
    transformer = TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        bf16=precision is Precision.bf16,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        apply_rope_fusion=False,
    )
    with cpu.construction():
        module = GPTModel(
            transformer,
            get_gpt_layer_local_spec(normalization="RMSNorm"),
            model.vocab_size,
            SEQUENCE,
            position_embedding_type="rope",
            share_embeddings_and_output_weights=False,
            pg_collection=groups,
        ).to(dtype)
        wrapped = DistributedDataParallel(
            transformer,
            DistributedDataParallelConfig(
                use_distributed_optimizer=True, grad_reduce_in_fp32=True, overlap_grad_reduce=True
            ),
            module,
        )
        optimizer = get_megatron_optimizer(
            OptimizerConfig(
                lr=LEARNING_RATE,
                weight_decay=0.1,
                bf16=precision is Precision.bf16,
                params_dtype=dtype,
                use_distributed_optimizer=True,
                clip_grad=1.0,
            ),
            [wrapped],
            use_gloo_process_groups=False,
        )
    transformer.finalize_model_grads_func = finalize_model_grads
    transformer.no_sync_func = wrapped.no_sync
    schedule = get_forward_backward_func()
    causal_mask = torch.ones(1, 1, SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)

    def forward(batches: object, chunk: Callable[..., torch.Tensor]) -> object:
        batch = next(batches)
        losses = chunk(batch.tokens_BS, None, causal_mask, labels=batch.labels_BS)
        return losses, lambda output: (output.float().mean(), {"loss": output.float().mean().detach()})

    def step(batch: Batch) -> float:
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        reports = schedule(
            forward_step_func=forward,
            data_iterator=iter([batch]),
            model=[wrapped],
            num_microbatches=1,
            seq_length=SEQUENCE,
            micro_batch_size=BATCH,
            forward_only=False,
        )
        with cpu.construction():
            optimizer.step()
        return reports[0]["loss"].item()

    return step


def contender(name: str, precision: Precision, pipe: Connection) -> None:
    """Body of a contender's process: run as many steps as told, answer with the CPU seconds that they took."""
    torch.set_num_threads(1)
    config = compose(Config, "train", ["model=tiny", "train.steps=1"])
    topology = build_topology(config.parallel, 1)
    generator = torch.Generator().manual_seed(1)
    with ExitStack() as stack:
        if name.startswith("plain"):
            step = plain(config, precision, "compiled" in name)
        else:
            timeout = datetime.timedelta(minutes=1)
            groups = stack.enter_context(site_groups(topology, rank=0, timeout=timeout))
            local = name == "megatron-local"
            build = partial(megatron_local, config, groups, precision)
            step = build() if local else ours(config, groups, precision, "compiled" in name)
        while steps := pipe.recv():
            stacked = torch.randint(0, 8192, (steps, BATCH, SEQUENCE + 1), generator=generator)
            batches = [
                Batch(x[:, :-1].contiguous(), x[:, 1:].contiguous(), torch.ones(BATCH, SEQUENCE)) for x in stacked
            ]
            started = time.process_time()
            for batch in batches:
                step(batch)
            pipe.send(time.process_time() - started)


def measure(names: list[str], precision: Precision, rounds: int, steps: int) -> dict[str, list[float]]:
    """Return tokens per CPU second, a figure a round; each contender is a process of its own, and they take turns."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in names:
        pipes[name], theirs = context.Pipe()
        context.Process(target=contender, args=(name, precision, theirs), daemon=True).start()
        theirs.close()  # so that a contender that dies is an EOFError here, not a wait for ever
    rates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names if turn % 2 else reversed(names):
            # The first round warms up, and compiles.
            pipes[name].send(steps if turn else 3)
            seconds = pipes[name].recv()
            if turn:
                rates[name].append(steps * BATCH * SEQUENCE / seconds)
    for pipe in pipes.values():
        pipe.send(0)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="add compiled layers, ours and plain")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = ["isthmus", "plain", "megatron-local"]
    if options.compile:
        names += ["isthmus-compiled", "plain-compiled"]
    results: dict[str, object] = {"torch": torch.__version__, "machine": platform.machine()}
    for precision in options.precisions:
        rates = measure(names, Precision[precision], options.rounds, options.steps)
        print(f"{precision}: tokens per CPU second (median of {options.rounds} rounds); median ratio to each peer")
        for name, figures in rates.items():
            ratios = "  ".join(
                f"{statistics.median(a / b for a, b in zip(figures, rates[peer], strict=True)):.3f}x {peer}"
                for peer in ("plain", "megatron-local")
            )
            print(f"  {name:<18} {statistics.median(figures):7.0f}   {ratios}")
        results[precision] = rates
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
