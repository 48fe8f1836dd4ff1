"""Builds the native front where a C++ compiler is there; without one the package is whole, and serves with Python's.

python hatch_build.py     builds it in place, beside its source
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
import warnings
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
SOURCE = Path("src/forwardpass/serve/native/_front.pyx")
SKIP = "FORWARDPASS_NO_NATIVE"


class NativeFrontHook(BuildHookInterface[Any]):
    """Adds the compiled module to the wheel, which is then one for this platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, and say so where that is not possible."""
        if self.target_name != "wheel" or not sys.platform.startswith("linux") or os.environ.get(SKIP):
            return
        try:
            built = build(Path(self.root))
        except Exception as error:
            # Whatever is missing here, a compiler, its headers or the translator, the Python front does the same work.
            warnings.warn(f"the native front could not be built ({error}); the Python front serves", stacklevel=1)
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"].append(built.relative_to(self.root).as_posix())


def build(root: Path) -> Path:
    """Translate and compile the module beside its source; return where it is."""
    from Cython.Build import cythonize
    from setuptools import Extension
    from setuptools.dist import Distribution

    source = root / SOURCE
    name = ".".join(SOURCE.with_suffix("").parts[1:])
    with tempfile.TemporaryDirectory() as folder:
        flags = ["-O2", "-std=c++17", "-fno-strict-aliasing", "-g0"]
        extension = Extension(
            name, [str(source)], include_dirs=[str(source.parent)], extra_compile_args=flags, language="c++"
        )
        (translated,) = cythonize([extension], build_dir=folder, language_level=3, quiet=True)
        command = Distribution({"ext_modules": [translated]}).get_command_obj("build_ext")
        command.build_temp = command.build_lib = folder  # type: ignore[attr-defined]
        command.ensure_finalized()
        command.run()
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        compiled = Path(folder, *name.split(".")[:-1], f"{name.rpartition('.')[2]}{suffix}")
        built = source.with_name(compiled.name)
        fresh = built.with_suffix(".new")
        fresh.write_bytes(compiled.read_bytes())
        fresh.replace(built)  # a server that runs keeps the one that it has
    return built


if __name__ == "__main__":
    print(build(ROOT).relative_to(ROOT))
