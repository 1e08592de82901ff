"""`dil sweep`: all combinations of some values, checked first, finished ones skipped, ended in one table."""
