"""Tests may run in the background, where a shell lets what it starts ignore the signals that users interrupt with."""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
