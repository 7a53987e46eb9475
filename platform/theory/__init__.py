"""The propositions behind DropGen on a toy whose risks are exact; docs/theory.md shows the result."""
