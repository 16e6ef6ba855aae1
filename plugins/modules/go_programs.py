"""Documentation of the `go_programs` action; the work is done by the action plug-in."""

DOCUMENTATION = """
module: go_programs
short_description: Build the pinned Go programs of tools/ into the user's cache
description:
  - Builds what the cache lacks, with progress lines, on the controller.
options: {}
author: [Fleetfoot maintainers]
"""

EXAMPLES = """
- name: Build the pinned Go programs that are not in the cache
  fleetfoot.fleetfoot.go_programs:
"""

RETURN = """
directory:
  description: Folder that holds all programs.
  returned: success
  type: str
"""
