"""Reading a dataset: tokenizer, manifest, shards, sample order, packed stream, loader."""
