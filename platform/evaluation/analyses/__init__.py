"""What the paper measures on a network beside its Dice."""
