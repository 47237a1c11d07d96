"""Conversion options from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fgq.config.conversion import KINDS
from fgq.errors import ConfigError
from fgq.support.schema import check, read_json, read_toml, shown, table


def read_config(path: str | Path) -> dict[str, Any]:
    """Read conversion options from a TOML or JSON file.

    Parameters
    ----------
    path : path-like
        Keys are the parameters of `ConversionConfig`, with ``-`` or ``_``.

    Returns
    -------
    dict
        Keyword arguments for `ConversionConfig`.

    Raises
    ------
    ConfigError
        If the file cannot be read or parsed, or holds an option that does not exist or cannot be so.
    """
    path = Path(path)
    is_json = path.suffix.lower() == ".json"
    found = read_json(path, ConfigError) if is_json else read_toml(path, ConfigError)
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: found a {type(found).__name__}, wanted a table of options")
    options: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in KINDS:
            known = ", ".join(KINDS)
            raise ConfigError(f"{path}: found the unknown option {shown(key)}, wanted one of {known}")
        if name in options:
            raise ConfigError(f"{path}: found the option {name!r} twice, wanted one spelling of it")
        options[name] = value
    check(table({}, KINDS), options, str(path), ConfigError)
    return options
