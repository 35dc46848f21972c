"""Folders of the Hugging Face format: writing one from a checkpoint, making a checkpoint out of one."""
