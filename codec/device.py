"""Which device and which dtype a model runs in, unless the user says otherwise.

bfloat16 pays where the processor multiplies it natively (AMX tiles or AVX512-BF16: convolutions are
twice as fast as in float32); elsewhere it is emulated and slow, so float32 it is.
"""

import os

import torch

from codec.errors import LatentCodecError

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}

# oneDNN, which runs torch's convolutions on a CPU, can be held below what the processor has. With
# these values of ONEDNN_MAX_CPU_ISA it has no bfloat16 products (oneDNN, "CPU Dispatcher Control").
_ISAS_WITHOUT_BF16 = frozenset(
    {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
)


class DeviceError(LatentCodecError):
    """A device or dtype that is unknown or not there."""


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Returns `device`, or when None the CUDA device if there is one and else the CPU.

    Raises:
        DeviceError: torch does not know the name, or this machine has no such device.
    """
    num_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        return torch.device("cuda" if num_cuda else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise DeviceError(
            f"found device {device!r}, expected a name that torch knows, such as 'cpu' or 'cuda'"
        ) from None
    if chosen.type == "cuda" and (chosen.index or 0) >= num_cuda:
        raise DeviceError(
            f"found device '{chosen}', but torch sees {num_cuda} CUDA devices here; "
            "use 'cpu', or a torch build and a driver for your GPU"
        )
    return chosen


def choose_dtype(
    device: torch.device, dtype: str | torch.dtype | None = None, *, force_upcast: bool = False
) -> torch.dtype:
    """Returns `dtype`, or when None the fastest one that is safe on `device`.

    float16 is never chosen unasked: networks without normalisation can leave its range.

    Args:
        device: Where the model will run.
        dtype: A torch dtype, or its name (float32, bfloat16, float16, or fp32, bf16, fp16).
        force_upcast: The model's own wish for float32 (`config.force_upcast` of diffusers).

    Raises:
        DeviceError: `dtype` is none of those.
    """
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype is not None:
        raise DeviceError(f"found dtype {str(dtype)!r}, expected one of {', '.join(DTYPES)}")
    if force_upcast:
        return torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and cpu_multiplies_bf16()
    return torch.bfloat16 if fast else torch.float32


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has units for bfloat16 products that torch is allowed to use."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper() not in _ISAS_WITHOUT_BF16
    return allowed and _cpu_has_bf16_units()


def _cpu_has_bf16_units() -> bool:
    amx: bool = torch.cpu._is_amx_tile_supported()
    avx512: bool = torch.cpu._is_avx512_bf16_supported()
    return amx or avx512
