"""The command line: arguments in, rendering out, nothing else."""

from forwardpass.cli.app import main

__all__ = ["main"]
