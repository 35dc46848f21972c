"""Core attention: one file a kernel, each with what it can do; :mod:`selection` chooses among them."""
