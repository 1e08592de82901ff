"""dil beside TRL, and beside the machine's limit. Not part of the package: `make bench`, and README.md here."""
