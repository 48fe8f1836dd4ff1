"""Folders as transformers saves them: `config.json` and safetensors. Nothing is downloaded, no code in them is run."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from pathlib import Path

from torch import nn

from forwardpass.errors import InvalidModel, MissingExtra, UntrustedPickle

__all__ = ["load_pretrained"]


def load_pretrained(folder: Path) -> nn.Module:
    """Build the architecture that `config.json` names and load its weights, in float32.

    Raises:
        MissingExtra: transformers is not installed.
        UntrustedPickle: the weights are there as a pickle only.
        InvalidModel: the folder needs code of its own, or does not fit transformers.
    """
    architecture = _architecture(folder)
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(folder.glob("*.bin"))
        if pickles:
            raise UntrustedPickle(path=str(pickles[0]))
        raise InvalidModel(path=str(folder), reason="it has a config.json and no .safetensors file")
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtra(package="transformers", extra="huggingface", purpose="reading a model's folder")
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            import transformers  # which imports others on the way, and they log

            kind = getattr(transformers, architecture, None) or transformers.AutoModel
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            config.use_cache = False  # a cache of keys is no tensor that could be an output
            module = kind.from_pretrained(
                folder, config=config, local_files_only=True, use_safetensors=True, dtype="float32"
            )
    except Exception as error:  # transformers raises what lies below it
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InvalidModel(path=str(folder), reason=f"transformers cannot load it ({line[:200]})") from error
    finally:
        logging.disable(disabled)
    loaded: nn.Module = module.eval()
    return loaded


def _architecture(folder: Path) -> str:
    try:
        config = json.loads((folder / "config.json").read_text())
        if config.get("auto_map"):
            reason = "it needs code of its own (auto_map in config.json), which is never run"
            raise InvalidModel(path=str(folder), reason=reason)
        return str((config.get("architectures") or [""])[0])
    except (OSError, ValueError, AttributeError) as error:
        if isinstance(error, InvalidModel):
            raise
        raise InvalidModel(path=str(folder), reason="its config.json is not a model's") from error
