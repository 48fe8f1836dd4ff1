"""The fingerprint of the machine agrees with what the system says by other ways."""

from __future__ import annotations

import os
import platform
import subprocess

import onnxruntime
import psutil

from forwardpass.profile import describe_machine


def test_the_machine_is_described_as_the_system_sees_it() -> None:
    machine = describe_machine()
    assert machine.num_cores == int(subprocess.check_output(["nproc"], env={**os.environ, "OMP_NUM_THREADS": ""}))
    assert 0 < machine.memory_bytes <= psutil.virtual_memory().total
    assert machine.python == platform.python_version()
    assert dict(machine.runtimes)["onnxruntime"] == onnxruntime.__version__
    assert machine.cpu
