"""From YAML and the command line to checked dataclasses. `DictConfig` does not leave this package."""
