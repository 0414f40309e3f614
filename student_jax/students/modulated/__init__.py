"""A convolutional student whose filters depend on the style."""
