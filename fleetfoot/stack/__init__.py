"""What Pulumi declares: typed configuration, machine pools, the environment, platform objects."""
