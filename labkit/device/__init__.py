"""The machine: what is here, what work takes of it, its measured ceilings, its energy, and one place for seeds."""

from .energy import Energy, EnergyMeter, SensorError, energy_meter
from .here import (
    MissingDevice,
    available_devices,
    available_memory_bytes,
    describe,
    free_disk_bytes,
    memory_limit_bytes,
    require,
    usable_cores,
)
from .measure import (
    Ceiling,
    PeakMemory,
    copy_bandwidth,
    gemm_flops,
    peak_memory,
    peak_rss_bytes,
    reset_peak_rss,
)
from .settings import set_determinism, set_threads

__all__ = [
    "Ceiling",
    "Energy",
    "EnergyMeter",
    "MissingDevice",
    "PeakMemory",
    "SensorError",
    "available_devices",
    "available_memory_bytes",
    "copy_bandwidth",
    "describe",
    "energy_meter",
    "free_disk_bytes",
    "gemm_flops",
    "memory_limit_bytes",
    "peak_memory",
    "peak_rss_bytes",
    "require",
    "reset_peak_rss",
    "set_determinism",
    "set_threads",
    "usable_cores",
]
