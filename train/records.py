"""What a run states about itself beside its checkpoints: configuration, versions, data."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from codec.console import print_warning
from codec.outputs import atomic_output
from train import state
from train.config import AnyConfig

PACKAGES = ("latent-codec", "torch", "diffusers", "accelerate", "vector-quantize-pytorch")
STEP_SETTINGS = ("seed", "batch_size", "gradient_accumulation_steps")
"""Of the section run: which samples a step has, and its random numbers."""


def save_config(config: AnyConfig, run_dir: Path, fingerprint: Mapping[str, Any]) -> None:
    """Write the resolved configuration, the versions that run it and what data it runs on.

    A resumed run keeps what its earlier part had as NAME-<images>, where it differs, and announces
    other data and other settings that make it draw other samples.

    Args:
        config: of the run.
        run_dir: the run's folder.
        fingerprint: of `train.samples.pool.ImagePool`; `num_images` and `sha256` are compared.
    """
    checkpoints = state.list_checkpoints(run_dir)
    place = checkpoints[-1].stem.removeprefix(state.PREFIX) if checkpoints else "000000000"
    data = run_dir / "data.json"
    if data.is_file():
        _announce_other_data(json.loads(data.read_text(encoding="utf-8")), fingerprint)
    versions = _versions()
    _announce_other_samples(run_dir, config, versions)
    for name, text in (
        ("config.yaml", config_text(config)),
        ("versions.json", json.dumps(versions, indent=2)),
        ("data.json", json.dumps(fingerprint, indent=2, sort_keys=True)),
    ):
        path = run_dir / name
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            _write(path.with_stem(f"{path.stem}-{place}"), path.read_bytes())
        _write(path, text.encode())


def _write(path: Path, content: bytes) -> None:
    with atomic_output(path) as stream:
        stream.write(content)


def config_text(config: AnyConfig) -> str:
    """The resolved configuration as YAML, which `load_config` reads."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _versions() -> dict[str, str | int]:
    """What computes: packages, Python, the processor and how many processes use such ones."""
    distributed = torch.distributed
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    return {
        **{name: found for name in PACKAGES if (found := _installed(name))},
        "python": platform.python_version(),
        "processor": processor_name(),
        "processes": processes,
    }


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _announce_other_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if before["sha256"] != now["sha256"]:
        print_warning(
            f"found other training data ({now['num_images']} images) than this run had before "
            f"({before['num_images']} images): it goes on with those, so it will not repeat what "
            "an uninterrupted run would give"
        )


def _announce_other_samples(
    run_dir: Path, config: AnyConfig, versions: Mapping[str, str | int]
) -> None:
    """Say which settings, of those that decide what a step trains on, the run had otherwise."""
    now: dict[str, Any] = {f"run.{name}": getattr(config.run, name) for name in STEP_SETTINGS}
    before: dict[str, Any] = {}
    if (earlier := run_dir / "config.yaml").is_file():
        stored = yaml.safe_load(earlier.read_text(encoding="utf-8"))["run"]
        before |= {f"run.{name}": value for name, value in stored.items()}
    if (earlier := run_dir / "versions.json").is_file():
        before["processes"] = json.loads(earlier.read_text(encoding="utf-8"))["processes"]
        now["processes"] = versions["processes"]
    changes = [
        f"{name} {value} (before: {before[name]})"
        for name, value in now.items()
        if before.get(name, value) != value
    ]
    if changes:
        print_warning(
            f"found {', '.join(changes)}: the run goes on with that, so it will not repeat what an "
            "uninterrupted run would give"
        )


def processor_name() -> str:
    """What computes: the GPU's name, or the CPU's and its threads."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"
