"""What a class is in a terminology, so that other programs know it by more than its name."""

from __future__ import annotations

from pydantic import Field

from dropgen.config import Frozen


class Code(Frozen):
    """A coded concept, as DICOM has it (PS3.3 8.8).

    Attributes:
        scheme: Who defines the code: SCT for SNOMED CT, FMA, or a scheme of your own that starts with 99.
        value: The code.
        meaning: What it says to a person.
        abnormal: Whether it is a finding, as a tumour is, and no anatomical structure.
    """

    scheme: str = Field(min_length=1, max_length=16, pattern=r"^[^\\\s]+$")
    value: str = Field(min_length=1, max_length=64, pattern=r"^[^\\]+$")
    meaning: str = Field(min_length=1, max_length=64, pattern=r"^[^\\]+$")
    abnormal: bool = False
