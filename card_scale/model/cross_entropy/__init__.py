"""The cross-entropy of a vocabulary that is sharded over the tensor-parallel ranks, by several kernels."""
