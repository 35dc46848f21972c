"""What a file holds, by its name and its first bytes, and a reader for each format."""
