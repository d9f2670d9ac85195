"""Processes apart: graders with a deadline, programs in a sandbox."""
