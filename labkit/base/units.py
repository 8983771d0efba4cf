"""Quantities as people read them.

GB is decimal (10^9 bytes) and GiB is binary (2^30 bytes); this package counts memory in GiB.
Reports print "GB" for either; whoever compares with a printed figure names the unit meant.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

_BYTES_PER_SUFFIX = {
    "B": 1,
    **{"kB": KB, "MB": MB, "GB": GB, "TB": TB},
    **{"KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB},
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*")


def format_seconds(seconds: float) -> str:
    """Write a duration with the unit a reader would pick: "350 ms", "12.3 s", "4 min 05 s", "2.3 h", "1.4 d".

    Raises:
        ValueError: the duration is negative or not finite.
    """
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"seconds is {seconds}; a duration is finite and at least 0")
    # Each unit ends where its rounded number would reach the next unit, so "60.0 s" is never printed.
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    if seconds < 23.95 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} d"


def format_bytes(n_bytes: float) -> str:
    """Write a number of bytes in binary units with one decimal: "512 B", "1.5 KiB", "3.2 GiB"."""
    for size, suffix in ((KIB, "B"), (MIB, "KiB"), (GIB, "MiB"), (TIB, "GiB")):
        # 1023.95 KiB rounds to "1024.0 KiB", which a reader expects as "1.0 MiB".
        if abs(n_bytes) < size * 1023.95 / 1024:
            return f"{n_bytes / (size / KIB):.{0 if suffix == 'B' else 1}f} {suffix}"
    return f"{n_bytes / TIB:.1f} TiB"


def format_count(n: float) -> str:
    """Write a count with three significant digits: "999", "4.15M", "98.1M", "1.54B".

    The suffixes are those of model names: k, M, B (10^9) and T (10^12).
    """
    for size, suffix in ((1, ""), (KB, "k"), (MB, "M"), (GB, "B")):
        if abs(n) < size * 999.5:
            return f"{n:.0f}" if not suffix else f"{_three_digits(n / size)}{suffix}"
    return f"{_three_digits(n / TB)}T"


def settled(x: float, digits: int = 8) -> float:
    """Round to significant digits, so that a fit or a logarithm comes out the same on every processor; counts stay.

    Instruction sets round logarithms and sums of products differently in their last digits (numpy takes other code for
    AVX-512), and what is made again from the same record must be equal to the byte. Eight digits are one more than is
    published (labkit.workflow.tables): what follows from a settled number keeps the digits that are shown.
    """
    return float(x) if float(x).is_integer() else float(f"{x:.{digits}g}")


def _three_digits(x: float) -> str:
    n_decimals = 2 if abs(x) < 9.995 else 1 if abs(x) < 99.95 else 0
    return f"{x:.{n_decimals}f}"


def parse_bytes(size: str | int) -> int:
    """Read a size such as "2GiB" (binary) or "2GB" (decimal) as a whole number of bytes; an int passes through.

    Raises:
        ValueError: no number, a negative one, or a suffix that is not one of those listed in the message.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None or match[2] not in _BYTES_PER_SUFFIX:
        raise ValueError(
            f"{size!r} is not a size: write a number and one of {', '.join(_BYTES_PER_SUFFIX)}, "
            "as in '2GiB' (2 x 2^30 bytes) or '2GB' (2 x 10^9 bytes)"
        )
    return int(Decimal(match[1]) * _BYTES_PER_SUFFIX[match[2]])
