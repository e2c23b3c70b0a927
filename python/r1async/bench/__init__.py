"""`r1async bench`: what this machine does, measured; docs/benchmarks.md says how to read it."""


class BenchError(RuntimeError):
    """A measurement that failed; the text says where."""
