"""Telling the formats of model files apart, and which files belong to one, without any of the libraries."""

from __future__ import annotations

import zipfile
from pathlib import Path

from forwardpass.core.variants import SUFFIXES, Format
from forwardpass.runtimes.external import external_files

__all__ = ["companions", "format_of", "is_saved_model", "is_torch_path"]

_ARCHIVES = (Format.PT2, Format.AOTINDUCTOR, Format.TORCHSCRIPT)
_BY_SUFFIX = {suffix: format for format, suffix in SUFFIXES.items() if format not in _ARCHIVES}  # noqa: A001


def format_of(path: Path) -> Format:
    """Tell the format of a model file: by its name, and for PyTorch's archives by what is in them.

    What is no archive is taken for what its name says, or for ONNX, whose runtime then says what is wrong with it.
    """
    by_name = _BY_SUFFIX.get(path.suffix.lower())
    if by_name is not None:
        return by_name
    fallback = Format.PT2 if path.suffix.lower() == SUFFIXES[Format.PT2] else Format.ONNX
    return _format_of_archive(path) or fallback


def is_torch_path(path: Path) -> bool:
    """Tell whether PyTorch makes a module of it: a folder of transformers', a `torch.export` or TorchScript file."""
    if path.is_dir():
        return (path / "config.json").is_file()
    return path.is_file() and format_of(path) in (Format.PT2, Format.TORCHSCRIPT)


def is_saved_model(path: Path) -> bool:
    """Tell whether it is a folder that TensorFlow calls a SavedModel."""
    return (path / "saved_model.pb").is_file()


def companions(format: Format, location: Path) -> tuple[Path, ...]:  # noqa: A002
    """Return the files that a model file needs beside it: the weights of OpenVINO IR, or those that ONNX keeps outside.

    Raises:
        InvalidModel: an ONNX file names weights outside of its folder.
    """
    if format is Format.OPENVINO:
        return (location.with_suffix(".bin"),)
    return external_files(location) if format is Format.ONNX else ()


def _format_of_archive(path: Path) -> Format | None:
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2] for name in archive.namelist()}
    if any(name.startswith("data/aotinductor/") for name in members):
        return Format.AOTINDUCTOR
    if "models/model.json" in members:
        return Format.PT2
    return Format.TORCHSCRIPT if any(name.startswith("code/") for name in members) else None
