"""The CPU device's kernels; each import registers one family."""
