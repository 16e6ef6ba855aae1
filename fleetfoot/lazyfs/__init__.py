"""Lazy images: converted once, attached to the unchanged image, served sector by sector.

Format and conversion are here, and what a node runs to serve and mount them (`node`). Modules that
nodes get import nothing beside Python's standard library and each other. ADR 6 says why it is as it
is.
"""
