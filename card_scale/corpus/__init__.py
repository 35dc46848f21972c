"""Making a dataset from text: sources, tokenizer, build, verification, decontamination, near duplicates."""
