"""What is measured of pictures and of sets of pictures."""
