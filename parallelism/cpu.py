"""Stand-ins that let megatron-core run on a machine without CUDA. The only module that knows.

Megatron creates small tensors with `device="cuda"`, asks for the current CUDA device and compares type names. `install`
answers these for Megatron's own modules, through a proxy of `torch` that only they see, and for a handful of
`torch.cuda` functions that raise on a CPU build. Where CUDA is present it touches nothing.
"""

import contextlib
import ctypes
import functools
import importlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from isthmus.parallelism.layers.matmul import Linear

_CPU = torch.device("cpu")
# Modules of Megatron that name the device "cuda" in calls that we reach.
_MODULES_NAMING_CUDA = (
    "megatron.core.optimizer.optimizer",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.transformer.moe.moe_utils",
    "megatron.core.transformer.moe.token_dispatcher",
)
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange")


class _TorchOnCpu(types.ModuleType):
    """`torch`, except that its tensor factories read device "cuda" as "cpu"."""

    def __init__(self) -> None:
        super().__init__("torch")
        for name in _FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs and str(kwargs["device"]).startswith("cuda"):
            kwargs["device"] = _CPU
        return factory(*args, **kwargs)

    return make


class _NoStream:
    """What Megatron does with a stream where there are none. A class, since others annotate with `Stream | None`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def wait_stream(self, _: Any) -> None: ...
    def synchronize(self) -> None: ...


def _linear(megatrons: Callable[..., torch.Tensor], input: torch.Tensor, weight: torch.Tensor, **rest: Any) -> Any:
    """Megatron's linear layer; where tensor parallelism has nothing to communicate, through faster products."""
    alone = not (rest.get("allreduce_dgrad") or rest.get("sequence_parallel"))
    plain = rest.get("bias") is None and rest.get("gradient_accumulation_fusion") and not rest.get("grad_output_buffer")
    if alone and plain and not getattr(weight, "zero_out_wgrad", False):
        return Linear.apply(input, weight)
    return megatrons(input=input, weight=weight, **rest)


def install() -> None:
    """Put the stand-ins in place, once; does nothing where CUDA is available."""
    if torch.cuda.is_available() or getattr(torch.cuda, "_isthmus_stand_ins", False):
        return
    # One function for each name: torch.compile keeps a rule for every function, and refuses two for the same one.
    stand_ins: dict[str, Any] = {
        "current_device": lambda: _CPU,
        "synchronize": lambda *args, **kwargs: None,
        "manual_seed": lambda *args, **kwargs: None,
        "Stream": _NoStream,
        "current_stream": lambda *args, **kwargs: _NoStream(),
        "default_stream": lambda *args, **kwargs: _NoStream(),
        "stream": lambda *args, **kwargs: contextlib.nullcontext(),
        # There is no second generator whose state could be saved; the CPU's is saved beside it anyway.
        "get_rng_state": lambda *args, **kwargs: torch.zeros(1, dtype=torch.uint8),
        "set_rng_state": lambda state, *args, **kwargs: None,
        "is_current_stream_capturing": lambda: False,
    }
    for name, value in stand_ins.items():
        setattr(torch.cuda, name, value)
    torch.cuda.nvtx.range_push = lambda *args, **kwargs: None
    torch.cuda.nvtx.range_pop = lambda *args, **kwargs: None
    torch.cuda._isthmus_stand_ins = True  # type: ignore[attr-defined]

    random: Any = importlib.import_module("megatron.core.tensor_parallel.random")
    random._get_cuda_rng_state = stand_ins["get_rng_state"]
    random._set_cuda_rng_state = stand_ins["set_rng_state"]
    layers: Any = importlib.import_module("megatron.core.tensor_parallel.layers")
    megatrons_linear = layers.linear_with_grad_accumulation_and_async_allreduce
    faster: Any = functools.partial(_linear, megatrons_linear)
    faster.warned = megatrons_linear.warned  # Megatron keeps it on the function, and finds the function by its name
    layers.linear_with_grad_accumulation_and_async_allreduce = faster
    # Where they are installed, the optimizers and buffers of APEX and transformer-engine would want a GPU.
    layers.HAVE_TE = False
    optimizers: Any = importlib.import_module("megatron.core.optimizer")
    optimizers.Adam, optimizers.USING_PYTORCH_OPTIMIZER = torch.optim.AdamW, True
    proxy = _TorchOnCpu()
    for name in _MODULES_NAMING_CUDA:
        importlib.import_module(name).torch = proxy  # type: ignore[attr-defined]
    _undo_compilation("megatron.core.transformer.moe.router", "megatron.core.transformer.moe.experts")
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have glibc reuse freed activations instead of giving them back: a fresh page costs microseconds for its fault.

    mallopt(3): blocks up to 32 MiB (the most it takes) come from the heap, and the heap's top is not trimmed.
    """
    with contextlib.suppress(OSError, AttributeError):
        c_library = ctypes.CDLL(None)
        m_mmap_threshold, m_trim_threshold = -3, -1
        c_library.mallopt(m_mmap_threshold, 32 << 20)
        c_library.mallopt(m_trim_threshold, 2**31 - 1)


def _undo_compilation(*modules: str) -> None:
    """Give back the functions that Megatron hands to torch.compile at import: a minute of C++ for microseconds."""
    for name in modules:
        module = importlib.import_module(name)
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        for owner in (module, *(entry for entry in classes if entry.__module__ == name)):
            for attribute, value in list(vars(owner).items()):
                if (plain := getattr(value, "_torchdynamo_orig_callable", None)) is not None:
                    setattr(owner, attribute, plain)


@contextlib.contextmanager
def construction() -> Iterator[None]:
    """Within: CPU tensors answer `.type()` and `.cuda()` as Megatron's constructors expect of CUDA tensors."""
    if torch.cuda.is_available():
        yield
        return
    original_type, original_cuda = torch.Tensor.type, torch.Tensor.cuda

    def renamed(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original_type(tensor, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer

    torch.Tensor.type = renamed  # type: ignore[method-assign, assignment]
    torch.Tensor.cuda = lambda tensor, *args, **kwargs: tensor  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.type = original_type  # type: ignore[method-assign]
        torch.Tensor.cuda = original_cuda  # type: ignore[method-assign]
