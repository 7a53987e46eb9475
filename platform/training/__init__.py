"""The plain training loop and what feeds it."""
