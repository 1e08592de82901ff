"""`dil doctor`: whether runs will work on this machine, and what to do where they will not."""
