"""The host a stack runs on: whether it can, and what the first command installs.

Everything here runs on the distribution's own Python, before anything is installed: standard
library only.
"""
