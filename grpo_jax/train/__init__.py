"""Updates: state, gradient, optimizer, checkpoints, and the one loop."""
