"""Speech models: from what packages and folders hold to entries of a model repository."""
