"""Tokenizer, shards and their manifest, sample order, repetition, loader."""
