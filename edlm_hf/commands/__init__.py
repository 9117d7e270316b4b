"""The commands of `edlm`, a file for each. What they do is in the libraries beside this folder.

A command is a function that takes dataclasses. Their fields are its flags, the keys of its YAML file, and its help
(`options.py`). What is heavy is imported inside the functions, so that help is quick.
"""
