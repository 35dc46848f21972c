"""A package of the same name and command line as the training program; see train.py."""
