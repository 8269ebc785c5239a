"""What differs between base models: one file each."""
