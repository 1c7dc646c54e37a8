"""What `scripts/release` runs: one module per kind of file that a release holds."""
