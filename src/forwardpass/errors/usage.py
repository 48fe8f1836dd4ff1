"""What the user named: it is not there, or does not fit."""

from __future__ import annotations

from collections.abc import Sequence

from forwardpass.errors.base import ForwardpassError, with_hint

__all__ = [
    "InvalidConfig",
    "InvalidKeyFile",
    "InvalidMetric",
    "InvalidModel",
    "InvalidOption",
    "InvalidPipelines",
    "InvalidReference",
    "InvalidSamples",
    "InvalidStudent",
    "SourceNotFound",
    "UnknownProcessor",
    "UntrustedPickle",
    "UsageError",
]


class UsageError(ForwardpassError):
    """The user named something that is not there or does not fit."""

    slug = "usage"


class SourceNotFound(UsageError, FileNotFoundError):
    """A path given by the user leads nowhere."""

    slug = "source-not-found"

    def __init__(self, *, path: str, expected: str) -> None:
        self.path = path
        self.expected = expected
        super().__init__(f"Cannot find '{path}': expected {expected}.")


class InvalidReference(UsageError, ValueError):
    """A `package.module:name` that does not lead to a usable object."""

    slug = "invalid-reference"

    def __init__(self, *, reference: str, reason: str) -> None:
        self.reference = reference
        self.reason = reason
        super().__init__(f"Cannot use '{reference}': {reason}. Expected 'package.module:name'.")


class InvalidOption(UsageError, ValueError):
    """An option whose value does not parse or does not fit the others."""

    slug = "invalid-option"

    def __init__(self, *, option: str, value: str, expected: str) -> None:
        self.option = option
        self.value = value
        self.expected = expected
        problem = f"Invalid value '{value}' for {option}" if value else f"{option} is missing"
        super().__init__(f"{problem}: expected {expected}.")


class InvalidConfig(UsageError, ValueError):
    """A configuration file with mistakes, all of them named."""

    slug = "invalid-config"

    def __init__(self, *, path: str, mistakes: Sequence[str]) -> None:
        self.path = path
        self.mistakes = tuple(mistakes)
        listed = "".join(f"\n  - {mistake}" for mistake in mistakes)
        super().__init__(f"The configuration '{path}' cannot be used:{listed}")


class InvalidPipelines(UsageError, ValueError):
    """Pipelines whose steps do not fit together, with every reason."""

    slug = "invalid-pipelines"

    def __init__(self, *, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(mistakes)
        listed = "".join(f"\n  - {mistake}" for mistake in mistakes)
        super().__init__(f"The pipelines cannot be served:{listed}")


class InvalidKeyFile(UsageError, ValueError):
    """A file of API keys that cannot be read."""

    slug = "invalid-key-file"

    def __init__(self, *, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"Cannot use '{path}' as a file of API keys: {reason}. 'forwardpass keys add' makes one.")


class InvalidSamples(UsageError, ValueError):
    """Samples that cannot be measured with."""

    slug = "invalid-samples"

    def __init__(self, *, origin: str, reason: str, hint: str = "") -> None:
        self.origin = origin
        self.reason = reason
        self.hint = hint
        super().__init__(with_hint(f"Cannot use the samples of '{origin}': {reason}.", hint))


class InvalidMetric(UsageError, ValueError):
    """A metric that is unknown, or does not fit the model and the samples."""

    slug = "invalid-metric"

    def __init__(self, *, metric: str, reason: str, hint: str = "") -> None:
        self.metric = metric
        self.reason = reason
        self.hint = hint
        super().__init__(with_hint(f"Cannot score with the metric '{metric}': {reason}.", hint))


class UntrustedPickle(UsageError, PermissionError):
    """A checkpoint that would have to be unpickled, which can run code."""

    slug = "untrusted-pickle"

    def __init__(self, *, path: str) -> None:
        self.path = path
        super().__init__(
            f"Refusing to load '{path}': it is a pickle, and loading a pickle can run code. Save weights with "
            "safetensors.torch.save_file, an estimator with skops.io.dump, or pass --trust-pickle if you made this "
            "file yourself."
        )


class UnknownProcessor(UsageError, LookupError):
    """A processor that no installed package provides."""

    slug = "unknown-processor"

    def __init__(self, *, name: str, available: Sequence[str]) -> None:
        self.name = name
        self.available = tuple(available)
        super().__init__(
            f"No installed package provides the processor '{name}'. Available: {', '.join(available) or 'none'}. "
            "Install the package that registers it under the entry point group 'forwardpass.processors'."
        )


class InvalidModel(UsageError, ValueError):
    """A model file that its runtime cannot load."""

    slug = "invalid-model"

    def __init__(self, *, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"Cannot load the model '{path}': {reason}.")


class InvalidStudent(UsageError, ValueError):
    """A network that cannot learn from its teacher."""

    slug = "invalid-student"

    def __init__(self, *, student: str, reason: str, hint: str) -> None:
        self.student = student
        self.reason = reason
        self.hint = hint
        super().__init__(f"'{student}' cannot be taught by the source: {reason}. {hint}")
