"""The verb `bench`: training steps and crop reading, measured on this machine."""
