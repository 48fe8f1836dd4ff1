"""Measuring: latency, throughput, memory and cold start, always in fresh processes."""
