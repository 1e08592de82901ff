"""What a run leaves behind: its folder, manifest, checkpoints and result."""
