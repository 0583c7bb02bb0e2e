"""What train.yml was asked for, read on this machine. Every refusal is a ValueError of one line."""
