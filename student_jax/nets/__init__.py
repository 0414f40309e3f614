"""Networks and layers that students and measures share."""
