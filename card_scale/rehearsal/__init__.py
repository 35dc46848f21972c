"""Rehearsals: real runs that are killed, stopped and damaged on purpose."""
