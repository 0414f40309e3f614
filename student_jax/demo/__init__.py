"""A page on this machine to try a student on."""
