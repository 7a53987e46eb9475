"""DropGen Platform: segmentation models that survive a change of scanner, sequence or site."""

__version__ = "0.1.0"
