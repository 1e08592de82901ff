"""`dil eval`: which checkpoints, what is measured of them, and the record that stays beside each."""
