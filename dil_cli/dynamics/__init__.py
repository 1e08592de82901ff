"""The likelihoods over training: a fixed probe set, its statistics, alarms and the picture."""
