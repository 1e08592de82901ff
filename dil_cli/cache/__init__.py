"""`dil cache`: what runs keep for each other, listed, verified, removed."""
