"""What `results/mode_seeking.py` is made of: a world with exact densities, and losses minimised in it."""
