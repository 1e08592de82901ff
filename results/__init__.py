"""The paper's claims, tested with this tool: `make results` runs the grids and rewrites the pages of docs/results."""
