"""`dil plan`: memory, time and disk of a run before it is started, from its config alone."""
