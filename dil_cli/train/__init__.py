"""Training: preflight, optimiser, step, loop, and the run around them."""
