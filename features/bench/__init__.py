"""Crop reading measured: this store and its peers on the same voxels."""
