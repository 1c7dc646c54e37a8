"""What pages of ours share, whichever process serves them: style, files, headers. Leaves out what they show."""
