"""What all configs share: conversion to and from plain dicts, and the rounded up-projection width."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from typing_extensions import Self


def require(condition: bool, message: str) -> None:
    """Raises ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_width(config: str, name: str, factor: float, embedding_dim: int) -> None:
    """Raises ValueError unless the product can be the size of a tensor: before a float of 1e308 becomes an int."""
    fits = embedding_dim < 2**63 and -math.inf < factor < 2**63 and factor * embedding_dim < 2**63
    require(fits, f"{config}: {name} times embedding_dim must be the size of a tensor, got {factor!r}")


def check_config(config: Any, cls: type[Config]) -> None:
    """Every module calls this first, since fields of its config may have been set after that was made.

    Derives again what depends on them. Raises TypeError unless config is a cls, as those of the public xLSTM code, with
    the same names and fields, are not; ValueError unless a module can be built from it.
    """
    if not isinstance(config, cls):
        given = type(config)
        raise TypeError(
            f"config must be {cls.__module__}.{cls.__name__}, got {given.__module__}.{given.__name__}: "
            f"{cls.__name__}.from_dict takes plain dicts, dataclasses.asdict(config) makes one"
        )
    config.__post_init__()
    config.check()


def hand_down(outer: Config, inner: Config, *names: str) -> None:
    """Sets fields of a config to those of the config around it, or beside it, which decides about them.

    Raises ValueError where one was set inside since, to another value.
    """
    handed_down: dict[str, Any] = inner.__dict__.setdefault("_handed_down", {})
    for name in names:
        value, found = getattr(outer, name), getattr(inner, name)
        owner = f"{name} is that of {type(outer).__name__}, set it there; it is {value!r}, got {found!r}"
        unchanged = name not in handed_down or found in (value, handed_down[name])
        require(unchanged, f"{type(inner).__name__}: {owner}")
        handed_down[name] = value
        setattr(inner, name, value)


def ignored(default: Any) -> Any:
    """A dataclass field of the public xLSTM code that has no meaning here: accepted, without effect."""
    return field(default=default, repr=False, metadata={"ignored": True})


@dataclass
class Config:
    """Base of all configs. Fields that begin with an underscore are filled in by the config around this one.

    Fields may be set until a module is built; those that the config around this one decides about are refused then.
    """

    def __init_subclass__(cls) -> None:
        if cls.__module__.startswith(f"{__package__.partition('.')[0]}."):
            torch.serialization.add_safe_globals([cls])  # torch.load reads it back with weights_only=True

    def __post_init__(self) -> None:
        """Derives fields, those of nested configs too. Any number of times: again when a module is built."""

    def check(self) -> None:
        """Raises ValueError unless a module can be built from the config."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data that JSON can hold; `from_dict` turns it back."""
        public = (f.name for f in fields(self) if not f.name.startswith("_") and "ignored" not in f.metadata)
        return {name: _plain(getattr(self, name)) for name in public}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Config from plain data, nested configs from nested mappings. Keys that begin with an underscore are ignored.

        Raises ValueError for unknown keys.
        """
        hints = typing.get_type_hints(cls)
        known = [f.name for f in fields(cls) if not f.name.startswith("_")]
        given = {name: value for name, value in values.items() if not name.startswith("_")}
        unknown = sorted(set(given) - set(known))
        require(not unknown, f"{cls.__name__}: unknown keys {', '.join(unknown)}; known are {', '.join(known)}")
        return cls(**{name: _build(hints[name], value) for name, value in given.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    return list(value) if isinstance(value, (list, tuple)) else value


def _build(hint: Any, value: Any) -> Any:
    """A nested config from its mapping; everything else as it is."""
    if not isinstance(value, Mapping):
        return value
    candidates = (hint, *typing.get_args(hint))
    return next((c.from_dict(value) for c in candidates if isinstance(c, type) and issubclass(c, Config)), value)


@dataclass
class UpProjectionConfig(Config):
    """Inner width: proj_factor times the embedding dimension, rounded to a multiple."""

    proj_factor: float = 1.0
    round_proj_up_dim_up: bool = True
    round_proj_up_to_multiple_of: int = 64

    def rounded_width(self, embedding_dim: int) -> int:
        require_width(type(self).__name__, "proj_factor", self.proj_factor, embedding_dim)
        round_ = math.ceil if self.round_proj_up_dim_up else math.floor
        multiple = self.round_proj_up_to_multiple_of
        return round_(self.proj_factor * embedding_dim / multiple) * multiple
