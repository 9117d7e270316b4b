"""Defaults that a function of the library and the flag of a command share. Imports nothing: help is quick."""

# Of converted checkpoints: the settings of the published runs
MODEL_LENGTH = 1024
NOISE_SCHEDULE = "loglinear"

# Of pictures: letters of a line, and states between mask and text
COLUMNS = 64
MOST_STATES = 9
MOST_ANIMATED_STATES = 33
