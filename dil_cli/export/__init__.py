"""`dil export`: a checkpoint as a folder of its own, merged into one model or as the adapter that it is."""
