"""Keeps the latency target of a bundle behind HTTP."""
