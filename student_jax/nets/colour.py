"""What colours are to more than one room: the stylist, the measures."""

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the luma: Y of ITU-R BT.601, as in Gatys et al. (2016)."""
