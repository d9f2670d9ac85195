"""Completions in, numbers out; everything here runs on the host."""
