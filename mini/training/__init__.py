"""What trained the weights in mini/weights; README.md has the commands."""
