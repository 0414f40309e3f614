"""Weights of students: folders of ours, files of others, the hub."""
