"""Studies: cases on disk, checked, read and prepared."""
