"""The report of a study of data repetition: figures, tables and caveats from its result table."""
