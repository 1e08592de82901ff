"""From a file, folder or hub data set to batches of token ids: sources, schemas, template, truncation."""
