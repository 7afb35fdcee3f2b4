"""Everything that can go wrong in a rebuild job or while reading its snapshot.

IndexerError
|-- SettingsError            the command line asked for something impossible
|-- SourceError              an input file as a whole cannot be read (a bad row is rejected, it never raises)
|   `-- ColumnError          a needed column is missing from the file, or mapped to a column it does not have
|-- MemoryLimitError         the job needs, or holds, more memory than it may
|-- EmptyCatalogueError      no usable item is left after reading
|-- EmbeddingCacheError      the embedding cache cannot be opened or holds something unreadable
|-- WeightsError             a weights folder is missing, damaged or does not fit; or training gave nothing usable
|-- IndexQualityError        no index setting reached the promised recall
|-- GatesShutError           the build is not fit to be served: a figure is beyond its limit
`-- SnapshotError
    |-- SnapshotNotFoundError   no such store, version or CURRENT pointer
    |-- SnapshotFormatError     a format version, a shape or a name that this reader does not know
    `-- SnapshotCorruptError    a file is missing, truncated or has other bytes than the manifest says
"""


class IndexerError(Exception):
    """Base of all errors of this package; the message names the offending value and the limit."""


class SettingsError(IndexerError):
    """The settings of a job contradict each other or name something that is not there."""


class SourceError(IndexerError):
    """An input file cannot be read at all."""


class ColumnError(SourceError):
    """An input file lacks a column that the job needs."""


class StoreBusyError(IndexerError):
    """Another build is running on the same store."""


class MemoryLimitError(IndexerError):
    """The job needs more memory than its limit: the message names both."""


class EmptyCatalogueError(IndexerError):
    """Not one row of the catalogue is usable."""


class EmbeddingCacheError(IndexerError):
    """The embedding cache cannot be used."""


class WeightsError(IndexerError):
    """Learned weights are missing, damaged, made with another model, or could not be learned."""


class IndexQualityError(IndexerError):
    """No setting of the index reaches the promised recall."""


class GatesShutError(IndexerError):
    """A build was made and not published: the message names each figure and its limit."""


class SnapshotError(IndexerError):
    """Base of all errors around the snapshot artefact."""


class SnapshotNotFoundError(SnapshotError):
    """The store, the version or the CURRENT pointer does not exist."""


class SnapshotFormatError(SnapshotError):
    """The snapshot is of a format, shape or name that this reader does not know."""


class SnapshotCorruptError(SnapshotError):
    """A file of the snapshot is missing, truncated or changed."""
