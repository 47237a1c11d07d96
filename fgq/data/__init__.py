"""Calibration and evaluation data: archives, images, samples, activation ranges."""
