"""The losses as a person looks them up: listed, explained, drawn, written to docs/losses.md."""
