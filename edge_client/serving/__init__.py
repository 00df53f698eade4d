"""Driving with what was learnt: class maps of what the camera sees now, while the vehicle learns."""
