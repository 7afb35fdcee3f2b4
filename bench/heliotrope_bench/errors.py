"""What can go wrong in a benchmark.

BenchError                  ends the command with one clear line
├── DatasetError            the data set is not there or can't be read
├── JobFailedError          `heliotrope build`, `export` or `serve` failed; the message ends with what it said
├── ServerLostError         the server under test went away or answered what it must not
├── PeerError               another engine can't be started, or fails when it is asked
└── ResultError             results that can't be read, or that must not be compared
"""


class BenchError(Exception):
    """Root of the tree."""


class DatasetError(BenchError):
    """The data set is not there or can't be read."""


class JobFailedError(BenchError):
    """A job that the benchmark runs as a command failed."""


class ServerLostError(BenchError):
    """The server under test went away or answered what it must not."""


class PeerError(BenchError):
    """Another engine can't be started, or fails when it is asked."""


class ResultError(BenchError):
    """Results can't be read, or must not be compared."""
