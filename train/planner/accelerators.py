"""Data sheets of accelerators. Nothing here is fitted; what is fitted stands in constants.py."""

from dataclasses import dataclass, replace

from isthmus.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """What the vendor prints. FLOP/s are dense; link bytes count one direction of one accelerator.

    `units` are what a matrix product's tiles are dealt to (streaming multiprocessors), `unit_flops_per_cycle` their
    bf16 rate. `energy_per_flop` is relative to the A100's, by what the foundry says of its process; see constants.py.
    """

    name: str
    bf16_flops: float
    fp8_flops: float
    fp32_flops: float
    memory_bytes: float
    memory_bytes_per_second: float
    units: int
    unit_flops_per_cycle: float
    node_size: int  # accelerators that share the fast links
    link_bytes_per_second: float  # inside a node
    network_bytes_per_second: float  # out of the node
    watts: float
    price_per_hour: float  # US dollars; an assumption, not a data sheet's
    energy_per_flop: float
    host_speed: float  # single-thread speed of the usual host, relative to the A100's (DGX A100: EPYC 7742)
    kind: str  # gpu, tpu, cpu
    source: str

    def peak_flops(self, precision: str) -> float:
        return {"bf16": self.bf16_flops, "fp8": self.fp8_flops, "fp32": self.fp32_flops}[precision]


_GB = 1e9

A100 = Accelerator(
    name="a100",
    bf16_flops=312e12,
    fp8_flops=312e12,
    fp32_flops=19.5e12,
    memory_bytes=80 * _GB,
    memory_bytes_per_second=2039 * _GB,
    units=108,
    unit_flops_per_cycle=2048,
    node_size=8,
    link_bytes_per_second=300 * _GB,
    network_bytes_per_second=25 * _GB,
    watts=400,
    price_per_hour=2.0,
    energy_per_flop=1.0,
    host_speed=1.0,
    kind="gpu",
    source="NVIDIA A100 80GB SXM data sheet, 2021; DGX A100: 8 x 200 Gbit/s",
)
H100 = Accelerator(
    name="h100",
    bf16_flops=989.4e12,
    fp8_flops=1978.9e12,
    fp32_flops=67e12,
    memory_bytes=80 * _GB,
    memory_bytes_per_second=3350 * _GB,
    units=132,
    unit_flops_per_cycle=4096,
    node_size=8,
    link_bytes_per_second=450 * _GB,
    network_bytes_per_second=50 * _GB,
    watts=700,
    price_per_hour=3.0,
    energy_per_flop=0.7,  # TSMC: N5 takes 30% less power than N7 at equal speed
    host_speed=1.6,  # DGX H100: Xeon 8480C against EPYC 7742, single thread
    kind="gpu",
    source="NVIDIA H100 SXM data sheet, 2023; DGX H100: 8 x 400 Gbit/s",
)
H200 = replace(
    H100,  # the same chip with other memory
    name="h200",
    memory_bytes=141 * _GB,
    memory_bytes_per_second=4800 * _GB,
    price_per_hour=3.7,
    source="NVIDIA H200 SXM data sheet, 2024",
)
B200 = Accelerator(
    name="b200",
    bf16_flops=2250e12,
    fp8_flops=4500e12,
    fp32_flops=75e12,
    memory_bytes=180 * _GB,
    memory_bytes_per_second=7700 * _GB,
    units=148,
    unit_flops_per_cycle=8192,
    node_size=8,
    link_bytes_per_second=900 * _GB,
    network_bytes_per_second=50 * _GB,
    watts=1000,
    price_per_hour=5.5,
    energy_per_flop=0.6,  # TSMC: N4P takes about 15% less than the N5 family of the H100 (22% less than N5)
    host_speed=1.7,
    kind="gpu",
    source="NVIDIA HGX B200 and DGX B200 data sheets, 2024, an eighth of the board",
)
TPU = Accelerator(
    name="tpu",
    bf16_flops=459e12,
    fp8_flops=459e12,
    fp32_flops=229e12,
    memory_bytes=95 * _GB,
    memory_bytes_per_second=2765 * _GB,
    units=8,
    unit_flops_per_cycle=32768,
    node_size=64,
    link_bytes_per_second=200 * _GB,
    network_bytes_per_second=12.5 * _GB,
    watts=450,
    price_per_hour=4.2,
    energy_per_flop=0.85,
    host_speed=1.3,
    kind="tpu",
    source="Google Cloud TPU v5p documentation, 2024: 8 matrix units of 128 x 128 a chip, a cube of 64 chips as node",
)
CPU = Accelerator(
    name="cpu",
    bf16_flops=0.128e12,
    fp8_flops=0.128e12,
    fp32_flops=0.128e12,
    memory_bytes=8 * _GB,
    memory_bytes_per_second=12 * _GB,
    units=1,
    unit_flops_per_cycle=64,
    node_size=2,
    link_bytes_per_second=4 * _GB,
    network_bytes_per_second=3.125 * _GB,
    watts=6,
    price_per_hour=0.04,
    energy_per_flop=1.0,
    host_speed=1.0,
    kind="cpu",
    source="Intel Xeon Platinum 8480+ (ARK): one core, 2 AVX-512 units at 2.0 GHz; better: isthmus plan calibrate",
)

ACCELERATORS = {entry.name: entry for entry in (A100, H100, H200, B200, TPU, CPU)}


def accelerator(name: str, where: str = "accelerator") -> Accelerator:
    """Return a data sheet by name.

    Raises:
        UserError: there is none.
    """
    if name not in ACCELERATORS:
        raise UserError(f"there is no '{name}'", where=where, fix=f"choose one of: {', '.join(ACCELERATORS)}")
    return ACCELERATORS[name]
