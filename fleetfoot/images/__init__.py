"""Building machine images."""
