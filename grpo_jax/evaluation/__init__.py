"""What a policy can do: its answers, estimators, results, probes."""
