"""Takes a trained model to production inference, and keeps the evidence."""

__version__ = "0.1.0"
