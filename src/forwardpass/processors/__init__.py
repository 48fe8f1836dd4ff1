"""Processors turn what a person sends into tensors and back. They are classes of installed packages.

A bundle names a processor by its entry point in the group `forwardpass.processors`; it can never bring code along.
"""

from forwardpass.processors.registry import GROUP, available_processors, open_processor, processor_files

__all__ = ["GROUP", "available_processors", "open_processor", "processor_files"]
