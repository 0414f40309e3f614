"""The mini teacher: its networks, how they are pre-trained, and the bundled weights."""
