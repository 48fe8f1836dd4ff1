"""The one place that picks real adapters."""
