"""Peak arithmetic and memory of accelerators, by name."""

from typing import Literal, NamedTuple


class Accelerator(NamedTuple):
    """One device, or on CPUs one process's share of the machine."""

    name: str
    bf16: float
    """FLOP/s of dense bf16 matrix products with fp32 sums, as the maker states them."""
    fp32: float
    """FLOP/s in fp32 without TF32, which is not used."""
    memory: float
    """Bytes that a process can allocate."""
    bandwidth: float = 0.0
    """Bytes a second of its memory."""
    fp8: float = 0.0
    """FLOP/s of dense fp8 matrix products; 0 where there are none."""
    generation: Literal["hopper", "older"] = "older"
    """Whether it is a Hopper GPU or a later one, on which torch's fused attention reaches less of the
    peak."""

    def peak(self, precision: str) -> float:
        """Return the peak in FLOP/s for "bf16" or "fp32"."""
        return self.bf16 if precision == "bf16" else self.fp32


GIB = 2**30
# Peaks and bandwidths are those of NVIDIA's datasheets (A100, H100, H200, GH200, L40S, HGX B200, GB200
# NVL72). Where these give bf16 or fp8 with sparsity, half of it is used. NVIDIA's GB are GiB, and a device
# keeps about one for itself. Names are looked up in this order, so the longer name comes first.
KNOWN = {
    "h100-pcie": Accelerator("NVIDIA H100 PCIe", 756e12, 51e12, 79 * GIB, 2e12, 1513e12, "hopper"),
    "h100-nvl": Accelerator("NVIDIA H100 NVL", 835e12, 60e12, 93 * GIB, 3.9e12, 1671e12, "hopper"),
    "h100": Accelerator("NVIDIA H100 SXM", 989e12, 67e12, 79 * GIB, 3.35e12, 1979e12, "hopper"),
    "h200-nvl": Accelerator("NVIDIA H200 NVL", 835e12, 60e12, 139 * GIB, 4.8e12, 1671e12, "hopper"),
    "h200": Accelerator("NVIDIA H200", 989e12, 67e12, 139 * GIB, 4.8e12, 1979e12, "hopper"),
    "gh200-144g": Accelerator("NVIDIA GH200 144 GB", 989e12, 67e12, 143 * GIB, 4.9e12, 1979e12, "hopper"),
    "gh200": Accelerator("NVIDIA GH200 96 GB", 989e12, 67e12, 95 * GIB, 4e12, 1979e12, "hopper"),
    "gb200": Accelerator("NVIDIA GB200", 2500e12, 80e12, 184 * GIB, 8e12, 5000e12, "hopper"),
    "b200": Accelerator("NVIDIA B200", 2250e12, 75e12, 178 * GIB, 8e12, 4500e12, "hopper"),
    "a100-40gb": Accelerator("NVIDIA A100 40 GB", 312e12, 19.5e12, 39 * GIB, 1.555e12, 0),
    "a100": Accelerator("NVIDIA A100 80 GB", 312e12, 19.5e12, 79 * GIB, 2.039e12, 0),
    "l40s": Accelerator("NVIDIA L40S", 362e12, 91.6e12, 44 * GIB, 0.864e12, 733e12),
}
