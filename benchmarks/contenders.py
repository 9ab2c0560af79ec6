"""The contenders of the benchmarks: the same Llama-shaped model trained by isthmus, plain PyTorch and Megatron."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from isthmus.parallelism import cpu
from isthmus.parallelism.config import Precision
from isthmus.train.assembly import build_engine
from isthmus.train.config import Config

LEARNING_RATE = 3e-4


@dataclass(frozen=True)
class Batch:
    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    mask_BS: torch.Tensor


Step = Callable[[Batch], float]


def ours(config: Config, groups: object, precision: Precision) -> Step:
    """The engine as `isthmus train` uses it."""
    config.train.precision = precision
    engine = build_engine(config, groups)

    def step(batch: Batch) -> float:
        loss = engine.forward_backward([batch])
        engine.gradient_norm(loss.tokens)
        engine.step(LEARNING_RATE)
        return loss.mean

    return step


class PlainLayer(torch.nn.Module):
    """A Llama layer as one would write it in plain PyTorch."""

    def __init__(self, hidden: int, heads: int, groups: int, ffn: int) -> None:
        super().__init__()
        self.heads, self.groups, width = heads, groups, hidden // heads
        self.norm1, self.norm2 = torch.nn.RMSNorm(hidden, eps=1e-5), torch.nn.RMSNorm(hidden, eps=1e-5)
        self.qkv = torch.nn.Linear(hidden, (heads + 2 * groups) * width, bias=False)
        self.out = torch.nn.Linear(hidden, hidden, bias=False)
        self.gate_up = torch.nn.Linear(hidden, 2 * ffn, bias=False)
        self.down = torch.nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, sequence, hidden = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, sequence, self.heads + 2 * self.groups, -1).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.groups, self.groups), dim=1)
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        grouped = self.heads != self.groups
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
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
            PlainLayer(model.hidden_size, model.num_attention_heads, model.num_query_groups, model.ffn_hidden_size)
            for _ in range(model.num_layers)
        )
        self.norm = torch.nn.RMSNorm(model.hidden_size, eps=1e-5)
        self.output = torch.nn.Linear(model.hidden_size, model.vocab_size, bias=False)
        if model.tied_embeddings:
            self.output.weight = self.embedding.weight
        width = model.hidden_size // model.num_attention_heads
        angles = torch.outer(
            torch.arange(config.train.sequence_length), 10_000.0 ** -(torch.arange(0, width, 2) / width)
        ).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = PlainModel(config).to(device)
    if precision is Precision.bf16:
        model.bfloat16()
    if compile_layers:
        for layer in model.layers:
            layer.compile()
    # As anyone would: AdamW directly on the bf16 parameters, without the fp32 copies that isthmus and Megatron keep.
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(batch: Batch) -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(batch.tokens_BS.to(device, non_blocking=True))
        labels = batch.labels_BS.to(device, non_blocking=True)
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
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
    model, sequence = config.model, config.train.sequence_length
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
            config.train.sequence_length,
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
    causal_mask = torch.ones(1, 1, sequence, sequence, dtype=torch.bool).triu(1)

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
            seq_length=sequence,
            micro_batch_size=config.train.micro_batch,
            forward_only=False,
        )
        with cpu.construction():
            optimizer.step()
        return reports[0]["loss"].item()

    return step


def random_batches(config: Config, count: int, generator: torch.Generator) -> list[Batch]:
    """Return batches of random tokens, one microbatch each."""
    shape = (config.train.micro_batch, config.train.sequence_length)
    stacked = torch.randint(0, config.model.vocab_size, (count, shape[0], shape[1] + 1), generator=generator)
    return [Batch(x[:, :-1].contiguous(), x[:, 1:].contiguous(), torch.ones(shape)) for x in stacked]
