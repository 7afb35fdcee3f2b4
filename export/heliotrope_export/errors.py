"""Everything this package raises on purpose.

ExportError
├── ModelError                 a model folder cannot be used
│   ├── ModelNotFoundError     there is no model folder at the path
│   ├── ModelFormatError       a format version this release does not read
│   ├── ModelCorruptError      a file is missing, damaged or does not fit its manifest
│   └── VariantError           a variant that is unknown, or was not published in this folder
├── SourceError                the model to export cannot be found, read or represented
├── AgreementError             an exported variant strays too far from the PyTorch model
├── DestinationError           the output folder holds something that must not be overwritten
└── InstallationError          two distributions that overwrite each other are installed
"""


class ExportError(Exception):
    """Base of every error of this package."""


class ModelError(ExportError):
    """A model folder cannot be used."""


class ModelNotFoundError(ModelError):
    """There is no model folder at the path."""


class ModelFormatError(ModelError):
    """The model folder has a format version that this release does not read."""


class ModelCorruptError(ModelError):
    """A file of the model folder is missing, damaged or does not fit its manifest."""


class VariantError(ModelError):
    """A variant that is unknown, or was not published in this model folder."""


class SourceError(ExportError):
    """The model to export cannot be found, read or represented."""


class AgreementError(ExportError):
    """An exported variant strays too far from the PyTorch model; nothing was published."""


class DestinationError(ExportError):
    """The output folder holds something that must not be overwritten."""


class InstallationError(ExportError):
    """Two distributions that overwrite each other's files are installed."""
