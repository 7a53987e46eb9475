"""The verb `bench`: training steps, crop reading and precomputing, measured on this machine."""
