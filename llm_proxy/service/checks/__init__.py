"""What `doctor` looks at: each function takes the scene and yields what is wrong, with the command that mends it."""
