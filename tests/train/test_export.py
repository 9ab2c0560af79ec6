"""Exports: what Megatron and transformers load is the model, to the last bit."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.engines import SEQUENCE_LENGTH, compose_nano, rank_batches, topology_of
from support.ranks import CommandResult, RankWorld, isthmus_cli, run_ranks
from support.runs import train_run
from torch import Tensor

from isthmus.train.export.source import DTYPES, open_source
from isthmus.train.export.torch_dist import share_of
from isthmus.train.resuming import at_path

SHORT = ["train.steps=2", "train.global_batch=4", "checkpoint.every_steps=0", "checkpoint.asynchronous=false"]
MODELS = {
    "grouped queries": (2, ("parallel.tensor=2",), ()),
    "tied, bf16": (2, (), ("model.tied_embeddings=true", "train.precision=bf16")),
    "experts": (1, (), ("model=nano-moe",)),
}


def _save(model: str, root: Path, cache: Path) -> tuple[Path, list[str]]:
    """Train for two steps; return the site's folder and the model's overrides."""
    ranks, layout, words = MODELS[model]
    run_ranks(train_run, ranks, str(root), None, [*SHORT, *layout, *words, f"data.cache_dir={cache}"])
    return root / "r" / "main", list(words)


def _parameters(folder: Path) -> dict[str, Tensor]:
    source = open_source(at_path(folder), lambda count: None)
    return {name: tensor.to(DTYPES[source.precision]) for name, tensor in source.read(list(source.shapes))}


def _export(folder: Path, *words: str) -> CommandResult:
    return isthmus_cli("checkpoint", "export", "main", *words, cwd=folder.parent)


def _load_with_megatron(world: RankWorld, folder: str, words: list[str], expected: dict[str, Any]) -> list[str]:
    """Rank function: load an export into Megatron's own GPTModel; return the parameters that differ in any bit."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.validation import StrictHandling
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.moe import moe_utils

    from isthmus.parallelism import cpu
    from isthmus.parallelism.groups import site_groups
    from isthmus.parallelism.slices import global_name, pieces_of
    from isthmus.parallelism.topology import padded_vocab_size

    config = compose_nano(*words, f"parallel.tensor={world.size}")
    model = config.model
    timeout = datetime.timedelta(seconds=300)
    with site_groups(
        topology_of(config, world), rank=world.rank, timeout=timeout, init_method=world.init_method
    ) as groups:
        moe_utils.te_general_gemm = None
        (dtype,) = {tensor.dtype for tensor in expected.values()}
        experts: dict[str, Any] = {}
        if model.num_experts:
            experts = {"num_moe_experts": model.num_experts, "moe_ffn_hidden_size": model.ffn_hidden_size}
        megatrons = TransformerConfig(
            num_layers=model.num_layers,
            hidden_size=model.hidden_size,
            ffn_hidden_size=model.ffn_hidden_size,
            num_attention_heads=model.num_attention_heads,
            num_query_groups=model.num_query_groups,
            normalization="RMSNorm",
            gated_linear_unit=True,
            activation_func=torch.nn.functional.silu,
            add_bias_linear=False,
            use_cpu_initialization=True,
            tensor_model_parallel_size=world.size,
            params_dtype=dtype,
            bf16=dtype is torch.bfloat16,
            gradient_accumulation_fusion=False,
            **experts,
        )
        with cpu.construction():
            gpt = GPTModel(
                megatrons,
                get_gpt_layer_local_spec(num_experts=model.num_experts or None, normalization="RMSNorm"),
                padded_vocab_size(model),
                SEQUENCE_LENGTH,
                share_embeddings_and_output_weights=model.tied_embeddings,
                position_embedding_type="rope",
                pg_collection=groups,
            ).to(dtype)
        loaded, unasked, absent = dist_checkpointing.load(
            {"model": gpt.sharded_state_dict()}, folder, strict=StrictHandling.RETURN_ALL
        )
        assert not absent, absent
        assert all(key.endswith("_extra_state") or model.num_experts for key in unasked), unasked
        assert loaded["iteration"] == 2
        assert loaded["args"].num_layers == model.num_layers
        gpt.load_state_dict(loaded["model"])
        different, seen = [], set()
        for local, parameter in gpt.named_parameters():
            name = global_name(
                local,
                layer_numbers=list(range(model.num_layers)),
                first_expert=0,
                tied_embeddings=model.tied_embeddings,
            )
            flat = parameter.detach().reshape(-1)
            for piece in pieces_of(
                name, tuple(parameter.shape), tensor_rank=groups.tp.rank(), tensor_size=groups.tp.size()
            ):
                box = tuple(slice(o, o + s) for o, s in zip(piece.offset, piece.shape, strict=True))
                here = flat[piece.start : piece.start + piece.numel].view(piece.shape)
                seen.add(piece.name)
                if not torch.equal(here, expected[piece.name][box]):
                    different.append(piece.name)
        assert seen == set(expected)
    return different


@pytest.mark.parametrize(("model", "tensor"), [("grouped queries", 1), ("tied, bf16", 2), ("experts", 1)])
def test_megatron_loads_every_bit(model: str, tensor: int, tmp_path: Path, shared_cache: Path) -> None:
    folder, words = _save(model, tmp_path, shared_cache)
    result = _export(folder, "--to", "torch_dist", "--json")
    assert result.code == 0, result.err
    written = Path(json.loads(result.out)["folder"])
    assert (written / "latest_checkpointed_iteration.txt").read_text() == "2"
    expected = _parameters(folder)
    for different in run_ranks(_load_with_megatron, tensor, str(written / "iter_0000002"), words, expected):
        assert different == []


def _export_together(world: RankWorld, folder: str, target: str) -> int:
    """Rank function: a share of an export; return how many numbers it was."""
    from isthmus.parallelism import cpu
    from isthmus.train.export.torch_dist import export_torch_dist

    cpu.install()
    torch.distributed.init_process_group("gloo", init_method=world.init_method, rank=world.rank, world_size=world.size)
    try:
        source = open_source(at_path(Path(folder)), lambda count: None, rank=world.rank, ranks=world.size)
        export_torch_dist(source, Path(target), source.precision, rank=world.rank, ranks=world.size)
    finally:
        torch.distributed.destroy_process_group()
    return sum(torch.Size(source.shapes[name]).numel() for name in share_of(source.shapes, world.rank, world.size))


def test_several_processes_share_an_export(tmp_path: Path, shared_cache: Path) -> None:
    folder, words = _save("grouped queries", tmp_path, shared_cache)
    (tmp_path / "out").mkdir()
    shares = run_ranks(_export_together, 2, str(folder), str(tmp_path / "out"))
    expected = _parameters(folder)
    whole = sum(tensor.numel() for tensor in expected.values())
    assert sum(shares) == whole
    assert max(shares) < 0.6 * whole, "no process held the whole model"
    (different,) = run_ranks(_load_with_megatron, 1, str(tmp_path / "out/iter_0000002"), words, expected)
    assert different == []


def _losses(world: RankWorld, folder: str, words: list[str]) -> list[tuple[float, float]]:
    """Rank function: (loss sum, tokens) of each sample of a batch, by the engine with a checkpoint's parameters."""
    from isthmus.parallelism.groups import site_groups
    from isthmus.train.assembly import build_engine

    config = compose_nano(*words)
    topology = topology_of(config, world)
    timeout = datetime.timedelta(seconds=300)
    with site_groups(topology, rank=world.rank, timeout=timeout, init_method=world.init_method) as groups:
        engine = build_engine(config, groups)
        source = open_source(at_path(Path(folder)), lambda count: None)
        whole = dict(source.read(list(source.shapes)))
        for entry in engine.owned():
            where = entry.slice
            entry.parameter.copy_(whole[where.name].reshape(-1)[where.start : where.stop])
        engine.publish_parameters()
        return [
            (float(a), float(b)) for a, b in engine.evaluate(rank_batches(config, topology, world.rank, 9)).tolist()
        ]


@pytest.mark.parametrize("model", ["grouped queries", "tied, bf16"])
def test_transformers_loads_the_same_model(model: str, tmp_path: Path, shared_cache: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="it comes with the test extra")
    folder, words = _save(model, tmp_path, shared_cache)
    result = _export(folder, "--to", "huggingface", "--out", "llama", "--precision", "fp32")
    assert result.code == 0, result.err
    written = folder.parent / "llama"
    llama, report = transformers.AutoModelForCausalLM.from_pretrained(written, output_loading_info=True)
    assert not any(report.values()), report
    assert type(llama).__name__ == "LlamaForCausalLM"
    words = [word for word in words if word != "train.precision=bf16"]
    ((*ours,),) = run_ranks(_losses, 1, str(folder), words)
    theirs = []
    config = compose_nano(*words)
    for batch in rank_batches(config, topology_of(config, RankWorld(0, 1, "")), 0, 9):
        with torch.no_grad():
            logits = llama(batch.tokens_BS).logits
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels_BS, reduction="none")
        theirs += list(zip((losses * batch.mask_BS).sum(1).tolist(), batch.mask_BS.sum(1).tolist(), strict=True))
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(written)
    assert tokenizer.decode(tokenizer.encode("Once upon a time")) == "Once upon a time"
    assert llama.config.eos_token_id == tokenizer.eos_token_id


def test_what_cannot_be_exported_is_refused_in_a_line(tmp_path: Path, shared_cache: Path) -> None:
    folder, _ = _save("experts", tmp_path, shared_cache)
    for words, said in (
        (("--to", "onnx"), "--to: is 'onnx'; choose one of: torch_dist, huggingface"),
        ((), "--to: is not given"),
        (("--to", "huggingface"), "has experts, which Llama has not"),
        (("--to", "torch_dist", "--out", "."), "is there already"),
    ):
        result = _export(folder, *words)
        assert (result.code, result.err.count("\n")) == (2, 1), result.err
        assert said in result.err
    file = next(folder.glob("checkpoints/*/rank-00000.safetensors"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    result = _export(folder, "--to", "torch_dist")
    assert result.code == 2
    assert "rank-00000.safetensors is damaged" in result.err
    assert not (folder / "exports").exists()


def test_shares_are_whole_and_even() -> None:
    shapes = {f"{number:02}": (100 + number, 10) for number in range(50)}
    shares = [share_of(shapes, rank, 4) for rank in range(4)]
    assert [name for share in shares for name in share] == list(shapes)
    assert max(len(share) for share in shares) - min(len(share) for share in shares) <= 4
