"""Which crops a network takes: what its downsamplings ask of every axis."""

from __future__ import annotations

from dataclasses import dataclass

from dropgen.errors import ConfigError


@dataclass(frozen=True)
class SizeRule:
    """What every axis of a crop must be, in voxels.

    Attributes:
        multiple: It must be divisible by this.
        smallest: And at least this, itself a multiple.
        of: Whose rule it is, as the sentence of a refusal says it.
        remedy: What else a person can do than change the crop.
    """

    multiple: int
    smallest: int
    of: str
    remedy: str

    def require(self, crop: tuple[int, int, int]) -> None:
        """Checks a crop.

        Raises:
            ConfigError: An axis breaks the rule; names the axis and the nearest legal size.
        """
        for axis, size in zip("xyz", crop, strict=True):
            if size % self.multiple or size < self.smallest:
                legal = max(self.smallest, round(size / self.multiple) * self.multiple)
                raise ConfigError(
                    f"crop axis {axis} = {size} voxels does not fit {self.of}: it must be divisible by {self.multiple} "
                    f"and at least {self.smallest}; set the study's crop to {legal} there or {self.remedy}"
                )
