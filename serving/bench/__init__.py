"""What `dropgen segment` and `dropgen serve` do under load, measured."""
