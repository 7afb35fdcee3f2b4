"""BERT to ONNX, and text to vectors.

`heliotrope export` writes a model folder (`manifest.py` describes it); `TextEncoder` reads it with ONNX Runtime,
tokenizers and NumPy alone. The conversion needs torch and transformers, and is imported only by the command.
"""

from heliotrope_export.encoder import Encoding, TextEncoder
from heliotrope_export.errors import (
    AgreementError,
    DestinationError,
    ExportError,
    InstallationError,
    ModelCorruptError,
    ModelError,
    ModelFormatError,
    ModelNotFoundError,
    SourceError,
    VariantError,
)
from heliotrope_export.installation import check_single_runtime

__all__ = [
    "AgreementError",
    "DestinationError",
    "Encoding",
    "ExportError",
    "InstallationError",
    "ModelCorruptError",
    "ModelError",
    "ModelFormatError",
    "ModelNotFoundError",
    "SourceError",
    "TextEncoder",
    "VariantError",
    "check_single_runtime",
]
