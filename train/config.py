"""Reading the configuration of a training run: typed, strict, complete.

The settings themselves are in `train.sections`, `train.entropy.sections` and `train.prior`. What a
file configures shows in a section that only one kind has, see `SECTIONS`. An unknown key is an
error that suggests the nearest known one.
"""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from codec.errors import LatentCodecError
from train.entropy.sections import EntropyConfig, IndexConfig
from train.prior.sections import PriorConfig
from train.prior.token_sections import TokenPriorConfig
from train.sections import TrainConfig

AnyConfig = TrainConfig | EntropyConfig | IndexConfig | PriorConfig | TokenPriorConfig
Kind = type[AnyConfig]
SECTIONS: dict[str, Kind] = {
    "entropy": EntropyConfig,
    "indices": IndexConfig,
    "prior": PriorConfig,
    "tokens": TokenPriorConfig,
}
"""Sections that only one kind of configuration has; a file without any is of an autoencoder."""


class ConfigError(LatentCodecError):
    """A configuration file or an override cannot be used."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> AnyConfig:
    """Read a YAML file and apply `section.key=value` overrides.

    Args:
        path: YAML with the sections of one of `AnyConfig`.
        overrides: such as `run.max_minutes=5` or `data.folders=[photos]`; values are read as YAML.
            A key that only one section has may be given without the section.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value does not fit.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            values = yaml.safe_load(stream)
    except FileNotFoundError as error:
        raise ConfigError(f"found no file {path}, expected a YAML configuration") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds no sections, expected {', '.join(TrainConfig.model_fields)}"
        )
    for override in overrides:
        _apply(values, override, _kind(values))
    return parse_config(_expand(values, str(path)), str(path))


def parse_config(values: dict[str, Any], source: str) -> AnyConfig:
    """Validate a nested dictionary; errors name the key, the value found and what was expected."""
    kind = _kind(values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            message = f"found the unknown key {where}{_nearest(where, kind)}"
        elif first["type"] == "value_error":  # settings that do not go together
            message = first["msg"].removeprefix("Value error, ")
        else:
            message = f"{where}: found {first['input']!r}; {first['msg'].lower()}"
        raise ConfigError(f"{source}: {message}") from error


def known_keys(kind: Kind = TrainConfig) -> list[str]:
    """Every `section.key` of a kind of configuration."""
    return [
        f"{section}.{key}"
        for section, field in kind.model_fields.items()
        for key in field.annotation.model_fields  # type: ignore[union-attr]
    ]


def _kind(values: dict[str, Any]) -> Kind:
    """What a file with these sections configures."""
    found = [kind for section, kind in SECTIONS.items() if section in values]
    return found[0] if found else TrainConfig


def _expand(value: Any, source: str) -> Any:
    """Replace environment variables such as ${LATENT_CODEC_SHARED} in every string."""
    if isinstance(value, dict):
        return {key: _expand(item, source) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, source) for item in value]
    if not isinstance(value, str) or "$" not in value:
        return value
    expanded = os.path.expandvars(value)
    if "$" in expanded:
        raise ConfigError(
            f"{source}: found {value!r}, but that variable is not set: set it, or give the "
            "setting as key=value"
        )
    return expanded


def _apply(values: dict[str, Any], override: str, kind: Kind) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"found the override {override!r}, expected key=value")
    if "." not in key:
        matches = [known for known in known_keys(kind) if known.split(".")[1] == key]
        if len(matches) != 1:
            raise ConfigError(f"found the unknown key {key}{_nearest(key, kind)}")
        key = matches[0]
    section, _, name = key.partition(".")
    if key not in known_keys(kind):
        raise ConfigError(f"found the unknown key {key}{_nearest(key, kind)}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {text!r} is not a YAML value: {_one_line(error)}") from error
    part = values.setdefault(section, {}) or {}
    values[section] = {**part, name: value}


def _nearest(key: str, kind: Kind) -> str:
    candidates = list(dict.fromkeys([*known_keys(kind), *kind.model_fields, *SECTIONS]))
    short = {name.split(".")[-1]: name for name in candidates}
    whole = difflib.get_close_matches(key, candidates, n=1) if "." in key else []
    close = whole or [
        short[name] for name in difflib.get_close_matches(key.split(".")[-1], list(short), n=1)
    ]
    return f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(candidates)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
