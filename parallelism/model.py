"""From ModelConfig and ParallelConfig to megatron-core's GPTModel chunks of this rank."""

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel import layers as tensor_parallel_layers
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from isthmus.parallelism.config import Fp8Recipe, ModelConfig, ParallelConfig, Precision, Recompute
from isthmus.parallelism.layers.activation import SwiGLU
from isthmus.parallelism.layers.attention import RotaryAttention
from isthmus.parallelism.layers.loss import linear_cross_entropy
from isthmus.parallelism.layers.matmul import FusedWeightGradient
from isthmus.parallelism.layers.norm import RMSNorm
from isthmus.parallelism.layers.residual import get_residual_add
from isthmus.parallelism.machine import has_transformer_engine
from isthmus.parallelism.topology import head_dim, padded_vocab_size


def transformer_config(
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: Precision,
    fp8_recipe: Fp8Recipe,
    deterministic: bool,
    *,
    own_layers: bool = False,
) -> TransformerConfig:
    """Translate to Megatron's configuration. Initial weights are isthmus' own, so Megatron's are not drawn.

    `own_layers`: take isthmus' layers also where transformer-engine's could be had.
    """
    _bring_fused_weight_gradient()
    transformer_engine = has_transformer_engine() and not own_layers
    dtype = torch.float32 if precision is Precision.fp32 else torch.bfloat16
    virtual = parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None
    on_gpu = torch.cuda.is_available()
    optional: dict[str, Any] = {}
    if precision is Precision.fp8:
        optional |= {"fp8": "hybrid", "fp8_recipe": fp8_recipe.value}
    if parallel.recompute is Recompute.full:
        optional |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if model.num_experts:
        optional |= {
            "num_moe_experts": model.num_experts,
            "moe_router_topk": model.experts_per_token,
            "moe_router_pre_softmax": model.experts_per_token == 1,  # else a single expert's weight would always be 1
            "moe_router_load_balancing_type": "aux_loss",
            "moe_aux_loss_coeff": model.expert_balance,
            "moe_token_dispatcher_type": "alltoall" if on_gpu else "allgather",
            "moe_grouped_gemm": transformer_engine,
            "moe_ffn_hidden_size": model.ffn_hidden_size,
        }
    config = TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=head_dim(model),
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        perform_initialization=False,
        use_cpu_initialization=False,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=virtual,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        sequence_parallel=parallel.sequence,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        calculate_per_token_loss=True,
        deterministic_mode=deterministic,
        # Batched point-to-point crosses "next" and "previous" when two stages are both: silently wrong gradients.
        batch_p2p_comm=False,
        overlap_p2p_comm=virtual is not None,
        gradient_accumulation_fusion=True,
        bias_activation_fusion=transformer_engine,
        bias_dropout_fusion=transformer_engine,
        apply_rope_fusion=transformer_engine,
        masked_softmax_fusion=False,
        persist_layer_norm=transformer_engine,
        # transformer-engine's fused loss is not repeatable.
        cross_entropy_loss_fusion=transformer_engine and not deterministic,
        cross_entropy_fusion_impl="te" if transformer_engine else "native",
        **optional,
    )
    config.rotary_base = model.rope_base
    config.own_layers = not transformer_engine
    if not transformer_engine:
        # Megatron's switch for "the specification brings an activation module", which ours does.
        config.use_te_activation_func = True
    return config


def build_chunks(
    model: ModelConfig,
    config: TransformerConfig,
    groups: ProcessGroupCollection,
    sequence_length: int,
) -> list[GPTModel]:
    """Build this rank's chunks, uninitialised: one, or `virtual_pipeline` of them under the interleaved schedule."""
    chunks = config.virtual_pipeline_model_parallel_size or 1
    stage, stages = groups.pp.rank(), groups.pp.size()
    built = []
    for chunk in range(chunks):
        virtual_stage = chunk if chunks > 1 else None
        first = stage == 0 and chunk == 0
        last = stage == stages - 1 and chunk == chunks - 1
        gpt = LanguageModel(
            config=config,
            transformer_layer_spec=_layer_specification(config, virtual_stage),
            vocab_size=padded_vocab_size(model),
            max_sequence_length=sequence_length,
            pre_process=first,
            post_process=last,
            share_embeddings_and_output_weights=model.tied_embeddings,
            # Without transformer-engine the rotation is RotaryAttention's.
            position_embedding_type="none" if config.own_layers else "rope",
            rotary_base=model.rope_base,
            pg_collection=groups,
            vp_stage=virtual_stage,
        )
        gpt.to(device=torch.cuda.current_device(), dtype=config.params_dtype)
        built.append(gpt)
    return built


class LanguageModel(GPTModel):
    """GPTModel whose output layer and loss are one where tensor parallelism does not split the vocabulary."""

    last_token_only = False  # compute no logits but those after the last token

    def _postprocess(
        self, hidden_states: Tensor, *, labels: Tensor | None, loss_mask: Tensor | None, **rest: Any
    ) -> Tensor:
        """Return the loss of each token, (B, S), on the last stage; what Megatron returns in all other cases."""
        fused = self.config.tensor_model_parallel_size == 1 and not self.config.cross_entropy_loss_fusion
        if self.last_token_only:
            hidden_states = hidden_states[-1:]
        if not (self.post_process and fused and labels is not None and loss_mask is not None):
            return super()._postprocess(hidden_states, labels=labels, loss_mask=loss_mask, **rest)
        tied_here = self.share_embeddings_and_output_weights and self.pre_process
        tied = self.share_embeddings_and_output_weights
        # The output layer itself is not called, but Megatron's wait for its gathered parameters hangs on the call.
        for hook in self.output_layer._forward_pre_hooks.values():
            hook(self.output_layer, ())
        weight = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        losses = linear_cross_entropy(
            hidden_states, weight, labels.transpose(0, 1), loss_mask.transpose(0, 1), tied=tied_here
        )
        return losses.transpose(0, 1)


def _bring_fused_weight_gradient() -> None:
    """Where APEX is not installed, stand in for the extension that Megatron's own linear layers accumulate with."""
    layers: Any = tensor_parallel_layers
    if not layers._grad_accum_fusion_available:
        layers.fused_weight_gradient_mlp_cuda = FusedWeightGradient
        layers._grad_accum_fusion_available = True


def _layer_specification(config: TransformerConfig, virtual_stage: int | None) -> Any:
    if not config.own_layers:
        return get_gpt_layer_with_transformer_engine_spec(
            num_experts=config.num_moe_experts, moe_grouped_gemm=config.moe_grouped_gemm
        )
    # Without transformer-engine Megatron tests a name that it never defined.
    moe_utils.te_general_gemm = None
    mlp_parts = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear, activation_func=SwiGLU)
    mlp = ModuleSpec(module=MLP, submodules=mlp_parts)
    if config.num_moe_experts:
        mlp = ModuleSpec(
            module=MoELayer,
            submodules=MoESubmodules(experts=ModuleSpec(module=SequentialMLP, submodules=mlp_parts)),
        )
    layer = ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=RotaryAttention,
                    linear_proj=RowParallelLinear,
                    q_layernorm=IdentityOp,
                    k_layernorm=IdentityOp,
                ),
            ),
            self_attn_bda=get_residual_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=mlp,
            mlp_bda=get_residual_add,
        ),
    )
    layers = get_num_layers_to_build(config, vp_stage=virtual_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=RMSNorm)
