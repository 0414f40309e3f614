"""Stylising pictures, folders and videos with a student."""
