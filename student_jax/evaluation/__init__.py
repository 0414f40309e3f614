"""Judging style transfer: measures of pictures, baselines, the gold set, reports."""
