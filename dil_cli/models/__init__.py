"""The policy: loading it, the log-probs of its responses, the reference column."""
