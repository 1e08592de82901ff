"""Several processes that train one policy: how they start, what they say to each other, what each of them holds."""
