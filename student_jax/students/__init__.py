"""The students, each a folder with its configuration and its model."""
