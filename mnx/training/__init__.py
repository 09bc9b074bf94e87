"""What a Trainer on many ranks needs. The public names are in `mnx.extensions`."""
