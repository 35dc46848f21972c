"""Launch scripts and run configurations."""
