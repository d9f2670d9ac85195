"""A run's directory and its process: files, log, progress, report, signals."""
