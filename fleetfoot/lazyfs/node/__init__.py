"""What runs on a node: the server of sectors, and the snapshotter that mounts them.

Nothing here imports anything beside the standard library, `fleetfoot.errors` and the modules of
`fleetfoot.lazyfs` that do the same; gRPC is what the snapshotter needs more.
"""
