"""Every error that a user of forwardpass can meet, in one tree. A module holds the errors of one subject.

A class takes the facts as keywords, keeps them, and writes the sentence itself: what failed, the value, what was
expected, what to do. The `slug` is stable; `--json`, the HTTP API and the documentation refer to it. Exit codes and
HTTP status codes are not here: the command line and the server map the branches of this tree to theirs.

    ForwardpassError
    ├── UsageError               the user named something that is not there or does not fit
    │   ├── SourceNotFound
    │   ├── InvalidReference
    │   ├── InvalidOption
    │   ├── InvalidSamples
    │   ├── InvalidMetric
    │   ├── UntrustedPickle
    │   ├── UnknownProcessor
    │   ├── InvalidConfig
    │   ├── InvalidPipelines
    │   ├── InvalidKeyFile
    │   ├── InvalidStudent
    │   └── InvalidModel
    ├── BundleError              a bundle that cannot be trusted or understood
    │   ├── BundleNotFound
    │   ├── BundleDamaged
    │   ├── UnsupportedSchema
    │   └── UnsafePath
    ├── ConversionError          a model that cannot take the other form
    │   ├── UnsupportedOperator
    │   ├── OpsetUnavailable
    │   ├── ExportFailed
    │   │   ├── DataDependentControlFlow
    │   │   └── UnsteadySource
    │   ├── CannotPrune
    │   ├── NothingGained
    │   ├── NothingToQuantise
    │   └── ParityFailed
    ├── EnvironmentProblem       this machine lacks something
    │   ├── MissingExtra
    │   ├── MissingCompiler
    │   ├── EnvironmentUnavailable
    │   ├── StorageFailed
    │   ├── AddressInUse
    │   ├── WorkInProgress
    │   └── ChildFailed
    ├── ModelNotServed           the server cannot load its model
    ├── GoldenMismatch           a variant does not answer on this machine as it did when it was built
    └── RequestError             one request that cannot be answered
        ├── MalformedRequest
        ├── TensorMismatch
        ├── InputRejected
        ├── OutOfMemory
        ├── BodyTooLarge
        ├── UnsupportedMediaType
        ├── NotAcceptable
        ├── NotFound
        ├── Overloaded
        ├── DeadlineExceeded
        ├── NotReady
        ├── RequestQuarantined
        ├── Unauthorized
        ├── Forbidden
        ├── RateLimited
        ├── ServerUnreachable    the three that only a client meets
        ├── ServerFailed
        └── InvalidAnswer
"""

from forwardpass.errors.answers import (
    BodyTooLarge,
    DeadlineExceeded,
    Forbidden,
    GoldenMismatch,
    InputRejected,
    InvalidAnswer,
    MalformedRequest,
    ModelNotServed,
    NotAcceptable,
    NotFound,
    NotReady,
    OutOfMemory,
    Overloaded,
    RateLimited,
    RequestError,
    RequestQuarantined,
    ServerFailed,
    ServerUnreachable,
    TensorMismatch,
    Unauthorized,
    UnsupportedMediaType,
)
from forwardpass.errors.base import ForwardpassError
from forwardpass.errors.bundles import (
    BundleDamaged,
    BundleError,
    BundleNotFound,
    UnsafePath,
    UnsupportedSchema,
)
from forwardpass.errors.conversion import (
    CannotPrune,
    ConversionError,
    DataDependentControlFlow,
    ExportFailed,
    NothingGained,
    NothingToQuantise,
    OpsetUnavailable,
    ParityFailed,
    UnsteadySource,
    UnsupportedOperator,
)
from forwardpass.errors.machine import (
    AddressInUse,
    ChildFailed,
    EnvironmentProblem,
    EnvironmentUnavailable,
    MissingCompiler,
    MissingExtra,
    StorageFailed,
    WorkInProgress,
)
from forwardpass.errors.usage import (
    InvalidConfig,
    InvalidKeyFile,
    InvalidMetric,
    InvalidModel,
    InvalidOption,
    InvalidPipelines,
    InvalidReference,
    InvalidSamples,
    InvalidStudent,
    SourceNotFound,
    UnknownProcessor,
    UntrustedPickle,
    UsageError,
)

__all__ = [
    "AddressInUse",
    "BodyTooLarge",
    "BundleDamaged",
    "BundleError",
    "BundleNotFound",
    "CannotPrune",
    "ChildFailed",
    "ConversionError",
    "DataDependentControlFlow",
    "DeadlineExceeded",
    "EnvironmentProblem",
    "EnvironmentUnavailable",
    "ExportFailed",
    "Forbidden",
    "ForwardpassError",
    "GoldenMismatch",
    "InputRejected",
    "InvalidAnswer",
    "InvalidConfig",
    "InvalidKeyFile",
    "InvalidMetric",
    "InvalidModel",
    "InvalidOption",
    "InvalidPipelines",
    "InvalidReference",
    "InvalidSamples",
    "InvalidStudent",
    "MalformedRequest",
    "MissingCompiler",
    "MissingExtra",
    "ModelNotServed",
    "NotAcceptable",
    "NotFound",
    "NotReady",
    "NothingGained",
    "NothingToQuantise",
    "OpsetUnavailable",
    "OutOfMemory",
    "Overloaded",
    "ParityFailed",
    "RateLimited",
    "RequestError",
    "RequestQuarantined",
    "ServerFailed",
    "ServerUnreachable",
    "SourceNotFound",
    "StorageFailed",
    "TensorMismatch",
    "Unauthorized",
    "UnknownProcessor",
    "UnsafePath",
    "UnsteadySource",
    "UnsupportedMediaType",
    "UnsupportedOperator",
    "UnsupportedSchema",
    "UntrustedPickle",
    "UsageError",
    "WorkInProgress",
]
