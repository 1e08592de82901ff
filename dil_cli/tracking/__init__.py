"""Where a run's numbers go: its own record, the console and Weights & Biases, behind one protocol."""
